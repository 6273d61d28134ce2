"""The recurrent block of Griffin from its recurrence (De et al. 2024, section 2.4), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, gelu_tanh, linear, short_conv, sigmoid, silu, softplus
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {}),
    "wide": Row({"width": 64, "n_heads": 4, "conv": 3}, {}),
    "one block, a softer decay, SiLU": Row(
        {"sharpness": 2, "activation": "silu"}, {"sharpness": 2, "activation": "silu"}
    ),
}


def block_diagonal(weights: Weights, name: str, u: Tensor) -> Tensor:
    """`u [B, T, W]` times a block-diagonal matrix `[blocks, out, in]`, and a bias."""
    blocks = weights[f"{name}.weight"]
    pieces = u.reshape(*u.shape[:-1], len(blocks), -1)
    found = [pieces[..., n, :] @ block.T for n, block in enumerate(blocks)]
    return torch.cat(found, -1) + weights[f"{name}.bias"]


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t), the first token with the factor 1.

    `sizes`: sharpness (8 unless said), activation ("silu", else the tanh form of GELU).
    """
    width = len(weights["Lambda"])
    activation = silu if sizes.get("activation") == "silu" else gelu_tanh
    branch = activation(linear(weights, "branch", x, width))
    u = short_conv(weights, "u_conv", linear(weights, "u0", x, width))
    r = sigmoid(block_diagonal(weights, "recurrent_gate", u))
    gated = sigmoid(block_diagonal(weights, "input_gate", u)) * u
    a = torch.exp(-sizes.get("sharpness", 8) * r * softplus(weights["Lambda"]))
    h = torch.zeros_like(u[:, 0])
    o = torch.zeros_like(u)
    for t in range(x.shape[1]):
        factor = torch.sqrt(1 - a[:, t] ** 2) if t else 1.0
        h = a[:, t] * h + factor * gated[:, t]
        o[:, t] = h
    return linear(weights, "y", o * branch, x.shape[-1])
