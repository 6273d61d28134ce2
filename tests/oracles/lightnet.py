"""LightNet from its definition (Qin et al. 2024, equation 9): a softmax over tokens for each channel of the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, silu
from tests.oracles.row import Row

SIZES = {"n_heads": 3, "expand_ratio": 16, "v_dim": 16, "gate_rank": 6}
ROWS = {
    "default": Row({"expand_ratio": 16, "gate_rank": 6}, SIZES),
    "steep keys": Row(
        {"expand_ratio": 24, "gate_rank": 6},
        {**SIZES, "n_heads": 2, "expand_ratio": 24, "v_dim": 24},
        scale=4.0,
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = sum_s softmax_s(k_s) v_s^T over the tokens s <= t, formed anew for each token.

    `sizes`: n_heads, expand_ratio, v_dim, gate_rank, norm_eps.
    """
    n_heads, expand_ratio, v_dim = sizes["n_heads"], sizes["expand_ratio"], sizes["v_dim"]
    batch, length, d_model = x.shape
    q = silu(linear(weights, "q", x, n_heads, expand_ratio)) * expand_ratio**-0.5
    k = linear(weights, "k", x, n_heads, expand_ratio)
    v = linear(weights, "v", x, n_heads, v_dim)
    o = torch.zeros_like(v)
    for t in range(length):
        power = torch.exp(k[:, : t + 1] - k[:, : t + 1].amax(1, keepdim=True))
        share = power / power.sum(1, keepdim=True)
        for s in range(t + 1):
            o[:, t] += (q[:, t] * share[:, s]).sum(-1, keepdim=True) * v[:, s]
    gate = silu(linear(weights, "gate", linear(weights, "gate_low", x, sizes["gate_rank"]), d_model))
    normed = rms_norm(o.flatten(2), weights["y_norm.weight"].flatten(), sizes["norm_eps"])
    return linear(weights, "y", normed * gate, d_model)
