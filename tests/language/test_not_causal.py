"""`model: {causal: false}`: every token sees its whole sequence, and there is no state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.language.check import ROUNDING, distance, exact, linear, spec_of, worst_way
from tests.laws.ways import STATEFUL
from tests.support.packages import package

HEADS, DIM = 2, 8
PARAMS = {"n_heads": {"type": "int", "default": HEADS}, "head_dim": {"type": "int", "default": DIM}}
QKV = dict.fromkeys(("q", "k", "v"), "linear(x, [n_heads, head_dim])")
SPECS: dict[str, dict[str, Any]] = {
    "plain": spec_of(
        "plain",
        {**QKV, "y": "linear(attention(q, k, v), d_model)"},
        PARAMS,
        model={"causal": False},
        n_layers=2,
    ),
    "near": spec_of(
        "near",
        {**QKV, "y": "linear(attention(q, k, v, mask=abs(i - j) < 4), d_model)"},
        PARAMS,
        model={"causal": False},
    ),
    "pooled": spec_of(
        "pooled",
        {
            "u": "linear(x, [n_heads, head_dim])",
            "y": "linear(u - mean(u, over=tokens) + tanh(sum(u, over=tokens)), d_model)",
        },
        PARAMS,
        model={"causal": False},
    ),
}


def definition(name: str, mixer: nn.Module, x: Tensor) -> Tensor:
    """Loops over queries and heads."""
    if name == "pooled":
        u = linear(mixer, "u", x, HEADS, DIM)
        out = u - u.mean(0) + torch.tanh(u.sum(0))
    else:
        q, k, v = (linear(mixer, n, x, HEADS, DIM) for n in ("q", "k", "v"))
        out = torch.zeros_like(q)
        for i in range(len(x)):
            seen = [j for j in range(len(x)) if name == "plain" or abs(i - j) < 4]
            for h in range(HEADS):
                weights = torch.softmax(torch.stack([DIM**-0.5 * q[i, h] @ k[j, h] for j in seen]), 0)
                out[i, h] = weights @ v[seen, h]
    return F.linear(out.flatten(1), mixer.get_parameter("y.weight"))


@pytest.mark.parametrize("name", SPECS)
def test_definition(name: str) -> None:
    for length in (1, 5, 14):
        # Sums over tokens are float32 or wider.
        assert distance(SPECS[name], lambda mixer, x: definition(name, mixer, x), length) < ROUNDING


@pytest.mark.parametrize("name", SPECS)
def test_packed_and_padded(name: str) -> None:
    worst, way, count = worst_way(SPECS[name], skip=(*STATEFUL, "batch"))
    assert count == 5
    assert worst < ROUNDING, way


def test_later_tokens_are_seen() -> None:
    model = exact(SPECS["plain"])
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        assert not torch.allclose(
            model(tokens)[:, 0],
            model(tokens.clone().fill_(3).index_copy(1, torch.tensor([0]), tokens[:, :1]))[:, 0],
        )


def test_there_is_no_state() -> None:
    found = package(SPECS["plain"])
    model = found.Model()
    with pytest.raises(RuntimeError, match="not causal"):
        model.init_state(1)
    with pytest.raises(RuntimeError, match="not causal"):
        model(torch.arange(4)[None], return_state=True)
    with pytest.raises(RuntimeError, match="not causal"):
        model.generate(torch.arange(4)[None], 2)


def test_loss_is_asked_for_the_labels_as_they_are() -> None:
    model = exact(SPECS["plain"])
    tokens = torch.arange(7)[None]
    labels = torch.full((1, 7), -100)
    labels[0, 2] = 9
    with torch.no_grad():
        expected = F.cross_entropy(model(tokens)[0, 2], torch.tensor(9))
        found = model.loss(tokens, labels).main
        packed = model.loss(
            torch.cat([tokens, tokens], 1), labels.repeat(1, 2), cu_seqlens=torch.tensor([0, 7])
        ).main
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(packed, expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="labels"):
        model.loss(tokens)
