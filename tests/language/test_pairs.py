"""Masks and scores over values of the model and of the two tokens (language rule 14)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.language.check import KEPT_IN_FLOAT32, ROUNDING, distance, linear, spec_of, worst_way
from tests.support.packages import package

PARAMS = {
    "n_heads": {"type": "int", "default": 4},
    "n_kv_heads": {"type": "int", "default": 2, "divides": "n_heads"},
    "head_dim": {"type": "int", "default": 8},
    "window": {"type": "int", "default": 5},
}
HEADS, GROUPS, DIM, WINDOW = 4, 2, 8, 5
QKV = {
    "q": "linear(x, [n_heads, head_dim])",
    "k": "linear(x, [n_kv_heads, head_dim])",
    "v": "linear(x, [n_kv_heads, head_dim])",
}
SPECS = {
    "alibi": spec_of(
        "alibi",
        {
            **QKV,
            "slope": "param(slopes, [n_heads], init=0.5)",
            "y": "linear(attention(q, k, v, score=s - slope * (i - j)), d_model)",
        },
        PARAMS,
    ),
    "alibi_window": spec_of(
        "alibi_window",
        {
            **QKV,
            "slope": "param(slopes, [n_heads], init=0.5)",
            "y": "linear(attention(q, k, v, score=s - slope * (i - j), mask=i - j < window), d_model)",
        },
        PARAMS,
    ),
    "fox": spec_of(
        "fox",
        {
            **QKV,
            "f": "logsigmoid(linear(x, [n_heads]))",
            "c": "scan(f, decay=min(f * 0, 0))",
            "y": "linear(attention(q, k, v, score=s + c[i] - c[j]), d_model)",
        },
        PARAMS,
    ),
    "fox_window": spec_of(
        "fox_window",
        {
            **QKV,
            "f": "logsigmoid(linear(x, [n_heads]))",
            "c": "scan(f, decay=min(f * 0, 0))",
            "y": "linear(attention(q, k, v, score=s + c[i] - c[j], mask=i - j < window), d_model)",
        },
        PARAMS,
    ),
    "topics": spec_of(
        "topics",
        {
            **QKV,
            "a": "linear(x, [n_heads])",
            "b": "sum(linear(x, [head_dim]))",
            "o": "attention(q, k, v, mask=a[i] * a[j] > 0 or i == j, score=s + b[j] * exp(-(i - j) / 4))",
            "y": "linear(o, d_model)",
        },
        PARAMS,
    ),
}


def definition(name: str, mixer: nn.Module, x: Tensor) -> Tensor:
    """A loop over pairs."""
    q, k, v = (linear(mixer, n, x, h, DIM) for n, h in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)))
    length = len(x)
    out = torch.zeros(length, HEADS, DIM, dtype=x.dtype)
    slope = mixer.get_parameter("slopes") if name.startswith("alibi") else None
    c = nn.functional.logsigmoid(linear(mixer, "f", x, HEADS)).cumsum(0) if name.startswith("fox") else None
    a, b = (
        (linear(mixer, "a", x, HEADS), linear(mixer, "b", x, DIM).sum(-1))
        if name == "topics"
        else (None, None)
    )
    for h in range(HEADS):
        g = h * GROUPS // HEADS
        for i in range(length):
            scores, seen = [], []
            for j in range(i + 1):
                s = DIM**-0.5 * q[i, h] @ k[j, g]
                if name.endswith("window") and i - j >= WINDOW:
                    continue
                if slope is not None:
                    s = s - slope[h] * (i - j)
                if c is not None:
                    s = s + c[i, h] - c[j, h]
                if a is not None and b is not None:
                    if not (a[i, h] * a[j, h] > 0 or i == j):
                        continue
                    s = s + b[j] * torch.exp(torch.tensor(-(i - j) / 4, dtype=x.dtype))
                scores.append(s)
                seen.append(v[j, g])
            out[i, h] = torch.softmax(torch.stack(scores), 0) @ torch.stack(seen)
    return nn.functional.linear(out.flatten(1), mixer.get_parameter("y.weight"))


@pytest.mark.parametrize("name", SPECS)
def test_definition(name: str) -> None:
    for length in (1, 6, 19):
        assert distance(SPECS[name], lambda mixer, x: definition(name, mixer, x), length) < KEPT_IN_FLOAT32


@pytest.mark.parametrize("name", SPECS)
def test_every_way(name: str) -> None:
    worst, way, count = worst_way(SPECS[name])
    assert count == 16
    assert worst < (ROUNDING if name.startswith("alibi") else KEPT_IN_FLOAT32), way


def test_values_of_tokens_are_kept_in_the_ring_of_the_window() -> None:
    state = package(SPECS["fox_window"]).Model().init_state(2, 40)
    kept = {name.rsplit(".", 1)[1]: tensor for name, tensor in state.tensors().items() if "mixer" in name}
    assert kept["c_kept"].dtype == torch.float32
    assert {kept[name].shape[1] for name in ("c_kept", "k", "v")} == {WINDOW}
