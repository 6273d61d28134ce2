"""Whole models of the library: published sizes, the order of their layers, what a sequence keeps."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from archc.graph.types import Graph
from archc.pipeline import cost, graph_of
from archc.totals import CostReport
from tests.support.packages import SPECS

MODELS = SPECS / "models"


@cache
def graph(name: str) -> Graph:
    return graph_of(MODELS / f"{name}.yaml")


@cache
def report(name: str) -> CostReport:
    return cost(MODELS / f"{name}.yaml")


def order(name: str, letters: dict[str, str]) -> str:
    """A letter for each layer, by the name of its block: of its class, less what tells classes apart."""
    return "".join(letters[re.sub(r"(_block)?(_\d+)?$", "", key)] for key in graph(name).layers())


# What transformers counts for the published configuration; without entries its defaults are the published model.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba_v0_1": ("Jamba", {}),
    "zamba2_2_7b": ("Zamba2", {"n_mamba_heads": 80, "num_mem_blocks": 2}),
    "qwen3_next_80b": ("Qwen3Next", {}),
    "recurrentgemma_2b": ("RecurrentGemma", {"intermediate_size": 15360, "num_key_value_heads": 1}),
    "kimi_linear_48b": (
        "KimiLinear",
        {
            "layer_types": [
                "full_attention" if at in (3, 7, 11, 15, 19, 23, 26) else "linear_attention"
                for at in range(27)
            ]
        },
    ),
    "falcon_h1_0_5b": (
        "FalconH1",
        {
            "vocab_size": 32784,
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "mamba_d_ssm": 1536,
            "mamba_n_heads": 24,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
        },
    ),
    "lfm2_1_2b": (
        "Lfm2",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        },
    ),
    "minimax_01": (
        "MiniMax",
        {
            "vocab_size": 200064,
            "hidden_size": 6144,
            "intermediate_size": 9216,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_local_experts": 32,
            "layer_types": (["linear_attention"] * 7 + ["full_attention"]) * 10,
        },
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_those_of_the_published_model(name: str) -> None:
    family, options = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**options)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    distinct = {id(parameter): parameter for parameter in model.parameters()}
    assert report(name).parameters == sum(parameter.numel() for parameter in distinct.values())


def test_parameters_of_the_mamba2_hybrid_by_hand() -> None:
    d, vocab, inner, heads, bc = 4096, 256000, 8192, 128, 2 * 8 * 128
    mamba = d * (2 * inner + bc + heads) + 5 * (inner + bc) + 3 * heads + inner + inner * d
    attention = 2 * d * d + 2 * d * 1024
    mlp = 2 * d * 4 * d
    norms = 57 * d
    total = 2 * vocab * d + 24 * mamba + 4 * attention + 28 * mlp + norms
    assert report("mamba2_hybrid_8b").parameters == total == 8_654_517_248


def test_parameters_of_hymba_by_hand() -> None:
    """Published as 1.52 billion, with 128 learned tokens that are not part of the spec."""
    d, inner, rank, state = 1600, 3200, 100, 16
    mamba = d * 2 * inner + 5 * inner + inner * (rank + 2 * state) + rank + 2 * state + rank * inner + inner
    mamba += inner * state + inner + inner
    layer = d * d + mamba + inner + inner * d + 3 * d * 5504 + 2 * d
    own_keys = d * 5 * (64 + 128)
    total = 32001 * d + 32 * layer + 17 * own_keys + d
    assert report("hymba_1_5b").parameters == total == 1_522_593_024


def test_order_of_the_mamba2_hybrid() -> None:
    """Section 3.3 of the paper: 24 layers of Mamba-2, 4 of attention, 28 MLPs; Mamba-2 first, an MLP last."""
    found = order("mamba2_hybrid_8b", {"mamba": "M", "attention": "*", "mlp": "-"})
    assert Counter(found) == {"M": 24, "*": 4, "-": 28}
    assert [at for at, letter in enumerate(found) if letter == "*"] == [10, 22, 33, 45]
    assert found[0] == "M" and found[-1] == "-"


def test_order_of_jamba() -> None:
    """Attention in one of eight layers, at offset 4; experts in every second layer, at offset 1."""
    found = order("jamba_v0_1", {"mamba": "m", "mamba_experts": "M", "full": "a"})
    assert found == "mMmMaMmM" * 4


@pytest.mark.parametrize(
    ("name", "letters", "expected"),
    [
        ("samba_1b", {"mamba": "M", "local": "S"}, "MS" * 9),
        (
            "zamba2_2_7b",
            {"mamba": "M", "hybrid": "H"},
            "M" + "MMMMMH" * 7 + "MMMMH" + "MMMH" + "MM",
        ),
        ("qwen3_next_80b", {"linear": "L", "full": "A"}, "LLLA" * 12),
        ("kimi_linear_48b", {"first": "L", "linear": "L", "full": "A"}, "LLLA" * 6 + "LLA"),
        ("recurrentgemma_2b", {"recurrent": "R", "local": "A"}, "RRA" * 8 + "RR"),
        ("minimax_01", {"linear": "L", "full": "A"}, "LLLLLLLA" * 10),
        ("lfm2_1_2b", {"conv": "C", "full": "A"}, "CCACCACCACACACAC"),
        ("delta_global_1b", {"linear": "L", "full": "A"}, "LA" + "L" * 10 + "A" + "L" * 11),
        ("linear_moe_a0_3b", {"linear": "L", "full": "N"}, "LLLN" * 3),
        ("gdn_h2_1b", {"mamba": "M", "linear": "L", "local": "S"}, "MLS" * 7),
        ("yoco_1b", {"retention": "R", "cross": "X"}, "R" * 10 + "X" * 11),
        (
            "hymba_1_5b",
            {"full": "F", "local": "L", "sharing": "s"},
            "F" + "Ls" * 7 + "F" + "Lss" + "Ls" * 6 + "F",
        ),
    ],
)
def test_order_of_layers(name: str, letters: dict[str, str], expected: str) -> None:
    assert order(name, letters) == expected


def test_shared_blocks_of_zamba2_take_turns() -> None:
    """Two blocks at nine places: their weights exist twice, adapters and outgoing matrices nine times."""
    shapes = [name for name in _parameters("zamba2_2_7b") if "layers." not in name]
    assert {name.split(".")[1] for name in shapes if name.startswith("shared.")} == {"A", "B"}
    own = [
        name
        for name in _parameters("zamba2_2_7b")
        if name.endswith(("gate_up_adapter_low.weight", ".t.weight"))
    ]
    assert len(own) == 18


def _parameters(name: str) -> dict[str, tuple[int, ...]]:
    from archc.pipeline import parameters

    return parameters(MODELS / f"{name}.yaml")


def heads(count: int, key: int, value: int) -> int:
    """Bytes of the states of some heads, in float32."""
    return 4 * count * key * value


def conv(channels: int, width: int = 4) -> int:
    """Bytes of a convolution's history, activations in 2 bytes."""
    return 2 * (width - 1) * channels


def keys(layers: int, n_heads: int, head_dim: int) -> int:
    """Bytes of keys and values a token."""
    return 2 * 2 * layers * n_heads * head_dim


MEMORY = {  # bytes of keys and values a token; of windows; of states
    "mamba2_hybrid_8b": (keys(4, 8, 128), 0, 24 * (heads(128, 128, 64) + conv(8192 + 2 * 8 * 128))),
    "samba_1b": (0, 2048 * keys(9, 18, 128), 9 * (heads(1, 16, 4608) + conv(4608))),
    "jamba_v0_1": (keys(4, 8, 128), 0, 28 * (heads(1, 16, 8192) + conv(8192))),
    "zamba2_2_7b": (keys(9, 32, 160), 0, 54 * (heads(80, 64, 64) + conv(5120 + 2 * 64))),
    "falcon_h1_0_5b": (keys(36, 2, 64), 0, 36 * (heads(24, 128, 64) + conv(1536 + 2 * 128))),
    "qwen3_next_80b": (keys(12, 2, 256), 0, 36 * (heads(32, 128, 128) + conv(2 * 16 * 128 + 32 * 128))),
    "kimi_linear_48b": (2 * 7 * (512 + 64), 0, 20 * (heads(32, 128, 128) + conv(3 * 32 * 128))),
    "recurrentgemma_2b": (0, 2048 * keys(8, 1, 256), 18 * (4 * 2560 + conv(2560))),
    "minimax_01": (keys(10, 8, 128), 0, 70 * heads(64, 128, 128)),
    "lfm2_1_2b": (keys(6, 8, 64), 0, 10 * conv(2048, 3)),
    "yoco_1b": (keys(1, 8, 128), 0, 10 * heads(16, 128, 128)),  # one cache for eleven layers
    "hymba_1_5b": (  # keys of 64 and values of 128 numbers; 14 windows for 29 layers
        3 * 2 * 5 * (64 + 128),
        1024 * 14 * 2 * 5 * (64 + 128),
        32 * (heads(1, 16, 3200) + conv(3200)),
    ),
    "linear_moe_a0_3b": (keys(3, 8, 128), 0, 9 * heads(8, 64, 128)),
    "delta_window_1b": (0, 2048 * keys(12, 16, 128), 12 * (heads(16, 128, 128) + conv(3 * 2048))),
    "delta_global_1b": (keys(2, 16, 128), 0, 22 * (heads(16, 128, 128) + conv(3 * 2048))),
    "gdn_h1_1b": (0, 2048 * keys(11, 16, 128), 11 * (heads(8, 192, 384) + conv(4 * 8 * 192))),
    "gdn_h2_1b": (
        0,
        2048 * keys(7, 16, 128),
        7 * (heads(8, 192, 384) + conv(4 * 8 * 192) + heads(64, 128, 64) + conv(4096 + 256)),
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_what_a_sequence_keeps(name: str) -> None:
    found = report(name)
    assert (found.cache_bytes_per_token, found.window_bytes, found.state_bytes) == MEMORY[name]
