"""Names of weights are decided by an equation's own text: options, neighbours and norms do not move them."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.laws.measure import subject
from tests.laws.subjects import HYBRIDS, SHRUNK, SUBJECTS, one_mixer
from tests.support.packages import package
from tests.support.slow import mostly_slow


def names(spec: Any) -> set[str]:
    """The names of all parameters of a model, and of all entries of its state."""
    model = package(spec).Model()
    return {key for key, _ in model.named_parameters()}


def attention(**options: object) -> Any:
    return one_mixer("probe", {"use": "attention", "n_heads": 4, **options})


def with_model(spec: Any, **entries: object) -> Any:
    changed = copy.deepcopy(dict(spec))
    changed["model"] = {**changed["model"], **entries}
    return changed


def with_mixer(spec: Any, **options: object) -> Any:
    changed = copy.deepcopy(dict(spec))
    changed["blocks"]["main"]["mixer"].update(options)
    return changed


OPTIONS: dict[str, tuple[Any, Any, str]] = {
    # before, after, the pattern of names that may be new or gone
    "window": (attention(), attention(window=5), ""),
    "softcap": (attention(), attention(softcap=5), ""),
    "rotation": (attention(), attention(rope={"theta": 500}), ""),
    "groups": (attention(), attention(n_kv_heads=2), ""),
    "norm of heads": (attention(), attention(qk_norm="head"), r"[qk]_norm\.weight"),
    "kind of that norm": (attention(qk_norm="head"), attention(qk_norm="projection"), ""),
    "gate": (attention(), attention(output_gate="element"), r"gate\.weight"),
    "biases": (attention(), attention(qkv_bias=True), r"[qkv]\.bias"),
    "kind of norm": (SHRUNK["gla_small"], with_model(SHRUNK["gla_small"], norm="layernorm"), r".*norm\.bias"),
    "tied embeddings": (
        SHRUNK["gla_small"], with_model(SHRUNK["gla_small"], tie_embeddings=False), r"head\.weight"),
    "eigenvalues": (
        SHRUNK["gated_deltanet_small"],
        with_mixer(SHRUNK["gated_deltanet_small"], negative_eigenvalues=False), ""),
    "width of values": (
        SHRUNK["gated_deltanet_small"], with_mixer(SHRUNK["gated_deltanet_small"], expand_v=2), ""),
    "width of convolutions": (
        SHRUNK["mamba2_small"], with_mixer(SHRUNK["mamba2_small"], conv=2), ""),
    "bound of steps": (SHRUNK["mamba2_small"], with_mixer(SHRUNK["mamba2_small"], dt_max=0.5), ""),
}  # fmt: skip


@pytest.mark.parametrize("option", mostly_slow(OPTIONS, 4))
def test_options(option: str) -> None:
    before, after, allowed = OPTIONS[option]
    changed = names(before) ^ names(after)
    odd = {name for name in changed if not re.fullmatch(rf"(.*\.)?{allowed}" if allowed else "$", name)}
    assert not odd
    assert bool(changed) == bool(allowed)


def test_another_layer_moves_nothing() -> None:
    """In front of, behind or beside other layers, a layer's names are those of its block."""
    base = copy.deepcopy(dict(HYBRIDS["windowed_hybrid"]))
    own = {key.partition(".")[2] for key in by_layer(names(base), 0)}
    for layers in (
        ["1 linear"] * 5,
        ["1 linear", "4 full"],
        ["1 full", "1 linear", "1 local", "1 full", "1 linear"],
    ):
        blocks = {name: block for name, block in base["blocks"].items() if name in " ".join(layers)}
        found = names({**base, "layers": layers, "blocks": blocks})
        place = next(i for i, word in enumerate(layers) if "linear" in word)
        assert {key.partition(".")[2] for key in by_layer(found, place)} == own


def by_layer(found: set[str], layer: int) -> set[str]:
    """Names below `layers.<layer>.`, without `layers.`."""
    return {key.removeprefix("layers.") for key in found if key.startswith(f"layers.{layer}.")}


def test_a_replaced_equation_moves_its_own_names_only() -> None:
    before = SHRUNK["gated_deltanet_small"]
    after = with_mixer(before, body={"gate": "sigmoid(linear(x, [n_v_heads, v_dim]))"})
    assert names(before) == names(after)


@pytest.mark.parametrize("name", SUBJECTS)
def test_names_are_layers_slots_and_equations(name: str) -> None:
    """`layers.1.mixer.cell.recurrent.weight` has a part between, `layers.1.mlp.expert.0.up.weight` one of several."""
    _, model = subject(name)
    outside = {"embedding.weight", "norm.weight", "norm.bias", "head.weight"}
    outside |= {"embedding_norm.weight", "embedding_norm.bias"}
    for key, _ in model.named_parameters():
        assert key in outside or re.fullmatch(
            r"(layers\.\d+|shared\.\w+)\.(\w+\.){0,2}(\d+\.)?\w+(\.(weight|bias))?", key
        ), key
    for key in model.init_state(1, 4).tensors() if model.causal else ():
        assert key == "length" or re.fullmatch(
            r"layers\.\d+\.(\w+\.){1,2}\w+(\.(normaliser|maximum))?", key
        ), key


def test_names_of_the_published_mixers() -> None:
    """Written down once, so that no later change of the compiler renames a stored weight."""
    found = {key.removeprefix("layers.0.") for key in by_full("gated_deltanet_small")}
    assert found == {
        "h_norm.weight", "y_norm.weight", "mlp.gate.weight", "mlp.up.weight", "mlp.y.weight",
        "mixer.q.weight", "mixer.q_conv.weight", "mixer.k.weight", "mixer.k_conv.weight",
        "mixer.v.weight", "mixer.v_conv.weight", "mixer.beta.weight", "mixer.decay.weight",
        "mixer.decay_A_log", "mixer.decay_dt_bias", "mixer.gate.weight", "mixer.y_norm.weight", "mixer.y.weight",
    }  # fmt: skip


def by_full(name: str) -> list[str]:
    return [key for key, _ in subject(name)[1].named_parameters() if key.startswith("layers.0.")]
