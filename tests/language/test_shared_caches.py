"""Keys and values that later layers read are kept once, by the layer that computes them (language rules 11, 12)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archc.pipeline import graph_of
from tests.language.check import ROUNDING, exact, spec_of, worst_way
from tests.support.packages import package
from tests.support.slow import mostly_slow

HEADS = {
    "n_heads": {"type": "int", "default": 4},
    "n_kv_heads": {"type": "int", "default": 2, "divides": "n_heads"},
    "head_dim": {"type": "int", "default": 8},
}


def sharing(
    name: str, computes: str, which: str, n_layers: int, mask: str = "true", k: str = "k"
) -> dict[str, Any]:
    """Layers for which `computes` holds have keys and values of their own, the others read those of an earlier one."""
    return spec_of(
        name,
        {
            "q": "rope(linear(x, [n_heads, head_dim]), 10000)",
            "k": f"rope(linear(x, [n_kv_heads, head_dim]), 10000) if {computes} else {which}(k)",
            "v": f"linear(x, [n_kv_heads, head_dim]) if {computes} else {which}(v)",
            "o": f"attention(q, {k}, v, mask={mask})",
            "y": "linear(o, d_model)",
        },
        HEADS,
        n_layers=n_layers,
        export=["k", "v"],
    )


SPECS = {
    "one_for_all": sharing("one_for_all", "site == 0", "first", 3),
    "pairs": sharing("pairs", "site % 2 == 0", "previous", 4),
    "triples": sharing("triples", "site % 3 == 0", "previous", 5),
    "pairs_in_a_window": sharing("pairs_in_a_window", "site % 2 == 0", "previous", 4, "i - j < 5"),
    "windows_between_full_layers": sharing(
        "windows_between_full_layers",
        "site % 3 != 2",
        "previous",
        6,
        "i - j < (5 if site % 3 else 1000) if site % 3 else true",
    ),
    "readers_in_a_window": sharing(
        "readers_in_a_window", "site == 0", "first", 3, "i - j < (1000 if site == 0 else 5)"
    ),
    "full_readers": sharing("full_readers", "site == 0", "first", 2, "i - j < (5 if site == 0 else 1000)"),
    "another_key_kept": sharing("another_key_kept", "site == 0", "first", 3, k="(2 * k)"),
}


def kept(spec: dict[str, Any]) -> dict[int, set[str]]:
    """For each layer the entries of a state."""
    found: dict[int, set[str]] = {}
    for name in package(spec).Model().init_state(1, 40).tensors():
        if name.startswith("layers."):
            found.setdefault(int(name.split(".")[1]), set()).add(name.rpartition(".")[2])
    return found


BOTH = {"k", "v"}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("one_for_all", [0]),
        ("pairs", [0, 2]),
        ("triples", [0, 3]),
        ("pairs_in_a_window", [0, 2]),
        ("windows_between_full_layers", [0, 1, 3, 4]),
        ("full_readers", [0, 1]),  # the window keeps too little for them
    ],
)
def test_only_layers_that_compute_keys_keep_them(name: str, layers: list[int]) -> None:
    assert kept(SPECS[name]) == dict.fromkeys(layers, BOTH)


def test_a_key_that_is_changed_after_its_export_is_kept_by_each_layer() -> None:
    assert sorted(kept(SPECS["another_key_kept"])) == [0, 1, 2]


@pytest.mark.parametrize("name", mostly_slow(SPECS, 3))
def test_every_way(name: str) -> None:
    worst, way, count = worst_way(SPECS[name])
    assert count == 16
    assert worst < ROUNDING, way


def test_the_caches_of_readers_change_nothing() -> None:
    """The same weights, where readers double keys and halve queries and so keep keys of their own."""
    spec = SPECS["one_for_all"]
    alone = sharing("alone", "site == 0", "first", 3, k="(2 * k)")
    alone["mixers"]["own"]["body"]["q"] = "rope(linear(x, [n_heads, head_dim]), 10000) / 2"
    tokens = torch.arange(24)[None]
    first, second = exact(spec), exact(alone)
    with torch.no_grad():
        for model in (first, second):
            state = model.init_state(1, 40)
            model(tokens[:, :9], state=state)
            last = model(tokens[:, 9:], state=state)
            whole = model(tokens)
            torch.testing.assert_close(last, whole[:, 9:], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(first(tokens), second(tokens), rtol=1e-12, atol=1e-12)


def test_what_an_expert_keeps_serves_no_other_body() -> None:
    """An expert sees some tokens only, and counts its own."""
    spec = sharing("experts", "site == 0", "first", 2)
    spec["mixers"]["chooser"] = {
        "slots": {"expert": "mixer"},
        "body": {
            "w": "softmax(topk(linear(x, 2), 1))",
            "y": "mixture(expert, x, weights=w)",
        },
    }
    spec["blocks"]["first"] = {
        "mixer": {"use": "chooser", "expert": {"use": "own"}},
        "mlp": {"use": "swiglu"},
    }
    spec["layers"] = ["1 first", "1 main"]
    found = [node for module in graph_of(spec).modules.values() for node in module.subgraph.nodes]
    assert [node.op for node in found].count("attention") == 2
    assert not any("kept_by" in node.attrs for node in found)
