"""`cache=`: what is kept of each token, with keys and values computed from it again (language rule 12)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from archc.pipeline import check
from tests.language.check import ROUNDING, exact, inputs, mixer_result, spec_of, worst_way
from tests.support.packages import package
from tests.support.slow import mostly_slow

HEADS, RANK, NOPE, TURNED, VALUE, QUERY_RANK = 4, 12, 8, 6, 10, 14


def mla(
    name: str,
    *,
    cache: str = "cache=[c, kr]",
    layout: str = "interleaved",
    query_rank: Any = QUERY_RANK,
    options: str = "",
) -> dict[str, Any]:
    """The mixer of DeepSeek-V3 (arXiv 2412.19437)."""
    arguments = ", ".join(filter(None, ["q", "k", "v", cache, options]))
    return spec_of(
        name,
        {
            "cq": "rmsnorm(linear(x, q_rank, name=q_a), name=q_norm, eps=1e-6) if q_rank else x",
            "qn, qr": "split(linear(cq, [n_heads, qk_dim], name=q_b), nope_dim, rope_dim)",
            "c0, kr0": "split(linear(x, kv_rank + rope_dim, name=kv_a), kv_rank, rope_dim)",
            "c": "rmsnorm(c0, eps=1e-6)",
            "kr": f"rope(kr0, theta, layout={layout})",
            "kn, v": "split(linear(c, [n_heads, nope_dim + v_dim], name=kv_b), nope_dim, v_dim)",
            "q": f"concat(qn, rope(qr, theta, layout={layout}))",
            "k": "concat(kn, kr)",
            "o": f"attention({arguments})",
            "y": "linear(o, d_model)",
        },
        {
            "n_heads": {"type": "int", "default": HEADS},
            "q_rank": {"type": "int", "default": query_rank},
            "kv_rank": {"type": "int", "default": RANK},
            "nope_dim": {"type": "int", "default": NOPE},
            "rope_dim": {"type": "int", "default": TURNED},
            "v_dim": {"type": "int", "default": VALUE},
            "theta": {"type": "number", "default": 10000},
            "window": {"type": "int", "default": 5},
        },
        sizes={"qk_dim": "nope_dim + rope_dim"},
        n_layers=2,
    )


TURNED_AFTER = spec_of(
    "turned_after",
    {
        "c": "rmsnorm(linear(x, rank))",
        "q": "rope(linear(x, [n_heads, head_dim]), 10000)",
        "k": "rope(linear(c, [n_heads, head_dim]), 10000)",
        "v": "linear(c, [n_heads, head_dim])",
        "y": "linear(attention(q, k, v, cache=[c]) + attention(q, k, v, name=local, mask=i - j < 4), d_model)",
    },
    {
        "n_heads": {"type": "int", "default": 2},
        "head_dim": {"type": "int", "default": 8},
        "rank": {"type": "int", "default": 6},
    },
)
SPECS = {
    "mla": mla("mla"),
    "mla_half": mla("mla_half", layout="half", query_rank="none"),
    "mla_window": mla("mla_window", options="mask=i - j < window"),
    "mla_score": mla("mla_score", options="score=3 * tanh(s / 3)"),
    "kept_alone": mla("kept_alone", cache="cache=[k, v]"),
    "turned_after": TURNED_AFTER,
}


def deepseek() -> nn.Module:
    """The attention of transformers with the mixer's weights."""
    config = DeepseekV3Config(
        hidden_size=32,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=QUERY_RANK,
        kv_lora_rank=RANK,
        qk_nope_head_dim=NOPE,
        qk_rope_head_dim=TURNED,
        v_head_dim=VALUE,
        rope_interleave=True,
        attention_bias=False,
        max_position_embeddings=128,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    config._attn_implementation = "eager"
    return DeepseekV3Attention(config, 0).double(), DeepseekV3RotaryEmbedding(config)


def test_agrees_with_transformers() -> None:
    spec = SPECS["mla"]
    x = inputs(19, rows=2)
    mixer, got = mixer_result(spec, x)
    other, rotary = deepseek()
    names = {
        "q_a_proj.weight": "q_a.weight",
        "q_a_layernorm.weight": "q_norm.weight",
        "q_b_proj.weight": "q_b.weight",
        "kv_a_proj_with_mqa.weight": "kv_a.weight",
        "kv_a_layernorm.weight": "c_norm.weight",
        "kv_b_proj.weight": "kv_b.weight",
        "o_proj.weight": "y.weight",
    }
    own = dict(mixer.named_parameters())
    with torch.no_grad():
        other.load_state_dict({theirs: own[ours] for theirs, ours in names.items()}, strict=True)
        positions = torch.arange(19)[None]
        mask = torch.full((19, 19), float("-inf"), dtype=torch.float64).triu(1)[None, None]
        expected = other(x, position_embeddings=rotary(x, positions), attention_mask=mask)[0]
    # The angles of both are float32: off by a rounding of the largest place.
    assert float((got - expected).abs().max()) < 19 * torch.finfo(torch.float32).eps * float(
        expected.abs().max()
    )


@pytest.mark.parametrize("name", mostly_slow(SPECS, 3))
def test_every_way(name: str) -> None:
    worst, way, count = worst_way(SPECS[name])
    assert count == 16
    assert worst < ROUNDING, way


def test_state_is_what_the_cut_names() -> None:
    def kept(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        state = package(spec).Model().init_state(1, 40)
        return {
            n.removeprefix("layers.0.mixer."): tuple(t.shape[1:])
            for n, t in state.tensors().items()
            if n.startswith("layers.0.")
        }

    assert kept(SPECS["mla"]) == {"c": (40, RANK), "kr": (40, TURNED)}
    assert kept(SPECS["mla_window"]) == {"c": (5, RANK), "kr": (5, TURNED)}
    assert kept(mla("no_cut", cache="")) == {"k": (40, HEADS, NOPE + TURNED), "v": (40, HEADS, VALUE)}


def test_cut_changes_nothing_but_the_state() -> None:
    x = inputs(11)
    _, whole = mixer_result(mla("no_cut", cache=""), x)
    _, cut = mixer_result(SPECS["mla"], x)
    assert torch.equal(whole, cut)


@pytest.mark.parametrize(
    ("cache", "missing"), [("cache=[c]", "kr"), ("cache=[kr]", "kn"), ("cache=[q]", "k")]
)
def test_a_cut_that_does_not_separate(cache: str, missing: str) -> None:
    found = check(mla("bad", cache=cache))
    assert [diagnostic.code for diagnostic in found] == ["E381"], found


def test_an_earlier_token_behind_the_cut() -> None:
    spec = mla("bad", cache="cache=[c, kr]")
    body = spec["mixers"]["own"]["body"]
    body["k"] = "shift(concat(kn, kr))"
    (found,) = check(spec)
    assert found.code == "E381" and "shift" in found.message


def test_packed_training_computes_keys_once() -> None:
    model = exact(SPECS["mla"])
    calls = []
    for name, module in model.named_modules():
        if name == "layers.0.mixer.kv_b":
            module.register_forward_hook(lambda m, a, result: calls.append(tuple(result.shape)))
    with torch.no_grad():
        model(torch.arange(20)[None], cu_seqlens=torch.tensor([0, 7, 20]))
    assert calls == [(1, 20, HEADS * (NOPE + VALUE))]
