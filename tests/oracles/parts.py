"""Pieces that several mixers use, written token by token from their definitions; slow on purpose."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor, *axes: int) -> Tensor:
    """`x [..., in] -> [..., *axes]` with `weights[name.weight] [out, in]` and, where there is one, a bias."""
    y = x @ weights[f"{name}.weight"].flatten(0, -2).T
    if f"{name}.bias" in weights:
        y = y + weights[f"{name}.bias"].flatten()
    return y.reshape(*x.shape[:-1], *axes)


def short_conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Causal convolution of each channel: `x [B, T, ...]`; the last tap meets the token itself."""
    taps = weights[f"{name}.weight"]
    taps = taps.reshape(-1, taps.shape[-1])
    width = taps.shape[-1]
    flat = x.flatten(2)
    y = torch.zeros_like(flat)
    for t in range(flat.shape[1]):
        for back in range(min(width, t + 1)):
            y[:, t] += taps[:, width - 1 - back] * flat[:, t - back]
    if f"{name}.bias" in weights:
        y = y + weights[f"{name}.bias"].flatten()
    return y.reshape(x.shape)


def shifted(x: Tensor) -> Tensor:
    """The token before, zero at the start: `[B, T, ...]`."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last axis; the weight may have any axes that broadcast against `x`."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last axis, without a bias; the weight may have any axes that broadcast against `x`."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps) * weight


def unit(x: Tensor, eps: float) -> Tensor:
    """`x` over its length in the last axis."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + eps)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), kept from overflow."""
    return 1 / (1 + torch.exp(-x.clamp(min=-80 if x.dtype == torch.float32 else -500)))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow."""
    return torch.clamp(x, min=0) + torch.log1p(torch.exp(-x.abs()))


def rotate(x: Tensor, position: int, theta: float, fraction: float = 1.0) -> Tensor:
    """Rotary position of one token `x [..., D]`: of the first R = fraction D, j pairs with j + R / 2."""
    turned = round(x.shape[-1] * fraction)
    half = turned // 2
    y = x.clone()
    for j in range(half):
        angle = position * theta ** (-2 * j / turned)
        a, b = x[..., j], x[..., j + half]
        y[..., j] = a * math.cos(angle) - b * math.sin(angle)
        y[..., j + half] = b * math.cos(angle) + a * math.sin(angle)
    return y


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gated_readout(weights: Weights, u: Tensor, kind: str) -> Tensor:
    """GELU and a gate after a state space layer, as the code of S5 has them: `[B, T, D] -> [B, T, D]`."""
    a = gelu_tanh(u)
    match kind:
        case "full_glu":
            gate = sigmoid(linear(weights, "y_gate", a, u.shape[-1]))
            return linear(weights, "y_value", a, u.shape[-1]) * gate
        case "half_glu1":
            return a * sigmoid(linear(weights, "y_gate", a, u.shape[-1]))
        case "half_glu2":
            return u * sigmoid(linear(weights, "y_gate", a, u.shape[-1]))
        case "gelu":
            return a
    assert kind == "none"
    return u


def rotate_neighbours(x: Tensor, position: int, theta: float, fraction: float = 1.0) -> Tensor:
    """As `rotate`, with channels 2j and 2j + 1 as pairs (GPT-J)."""
    turned = round(x.shape[-1] * fraction)
    y = x.clone()
    for j in range(turned // 2):
        angle = position * theta ** (-2 * j / turned)
        a, b = x[..., 2 * j], x[..., 2 * j + 1]
        y[..., 2 * j] = a * math.cos(angle) - b * math.sin(angle)
        y[..., 2 * j + 1] = b * math.cos(angle) + a * math.sin(angle)
    return y
