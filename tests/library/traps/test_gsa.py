"""Gated slot attention's traps: a scale of 1, writes of 1 - alpha after the decay, SiLU before the norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MLP = {"use": "swiglu", "d_ff": 48}


def seen(model: nn.Module, length: int, *names: str) -> dict[str, Tensor]:
    """Values of the mixer's equations for random tokens of one sequence, `[T, ...]`."""
    tokens = torch.randint(64, (1, length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, found = model(tokens, capture=[f"layers.0.mixer.{name}" for name in names])
    return {name: found[f"layers.0.mixer.{name}"][0] for name in names}


def test_first_tokens_by_hand(with_parts: Callable[..., nn.Module]) -> None:
    """With one slot the softmax is 1: o_1 = (1 - a_1) v_1, o_2 = a_2 o_1 + (1 - a_2) v_2."""
    model = with_parts({"use": "gsa", "n_heads": 4, "n_slots": 1}, MLP)
    got = seen(model, 2, "log_alpha", "v", "o", "q", "k", "scores")
    alpha, v, o = got["log_alpha"].exp(), got["v"], got["o"]
    torch.testing.assert_close(o[0], (1 - alpha[0]) * v[0])
    torch.testing.assert_close(o[1], alpha[1] * o[0] + (1 - alpha[1]) * v[1])
    # No K ** -0.5 anywhere: the score is the plain product.
    product = (got["q"][0] * got["k"][0]).sum(-1, keepdim=True)
    torch.testing.assert_close(got["scores"][0], (1 - alpha[0]) * product)


def test_gate_and_activations(with_parts: Callable[..., nn.Module]) -> None:
    """alpha = sigmoid(u) ** (1 / 8); SiLU on q, k and v; SiLU, then one norm over all heads, and no gate after."""
    model = with_parts({"use": "gsa", "n_heads": 4, "n_slots": 6}, MLP)
    mixer: Any = model.layers[0].mixer
    got = seen(model, 9, "x", "log_alpha", "q", "k", "v", "o", "y")
    x, o = got["x"], got["o"]
    alpha = torch.sigmoid(mixer.log_alpha(x)).unflatten(-1, (4, 6)) ** 0.125
    torch.testing.assert_close(got["log_alpha"].exp(), alpha)
    for name in ("q", "k", "v"):
        u = getattr(mixer, name)(x).unflatten(-1, (4, 12))
        torch.testing.assert_close(got[name], u * torch.sigmoid(u))
    active = (o * torch.sigmoid(o)).flatten(1)
    normed = active * torch.rsqrt((active**2).mean(-1, keepdim=True) + 1e-5) * mixer.y_norm.weight.flatten()
    torch.testing.assert_close(got["y"], mixer.y(normed))
    assert mixer.y_norm.weight.numel() == 48
