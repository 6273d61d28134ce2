"""MLPs from their definitions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tests.oracles.parts import Weights, linear, sigmoid


def glu(weights: Weights, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """(f(x W) * (x V)) W2 (Shazeer 2020): `x, y [B, T, d_model]`."""
    d_ff = weights["up.bias" if "up.bias" in weights else "up.weight"].shape[0]
    hidden = activation(linear(weights, "gate", x, d_ff)) * linear(weights, "up", x, d_ff)
    return linear(weights, "y", hidden, x.shape[-1])


def plain(weights: Weights, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """f(x W1) W2: `x, y [B, T, d_model]`."""
    hidden = activation(linear(weights, "up", x, weights["up.weight"].shape[0]))
    return linear(weights, "y", hidden, x.shape[-1])


def clamped(weights: Weights, x: Tensor) -> Tensor:
    """The MLP of one GPT-OSS expert: `x, y [B, T, d_model]`."""
    d_ff = weights["up.weight"].shape[0]
    gate = linear(weights, "gate", x, d_ff).clamp(max=7)
    up = linear(weights, "up", x, d_ff).clamp(-7, 7)
    return linear(weights, "y", (up + 1) * gate * sigmoid(1.702 * gate), x.shape[-1])
