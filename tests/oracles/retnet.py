"""Retention from its recurrence (Sun et al. 2023, equations 1 to 8), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, rotate, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "v_dim": 32}),
    "grouped heads": Row(
        {"n_heads": 4, "n_kv_heads": 2, "expand_k": 2, "expand_v": 1, "theta": 500},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 24, "v_dim": 12, "theta": 500.0},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = gamma_h S_{t-1} + k_t v_t^T, o_t = S_t^T q_t / sqrt(K), gamma_h = 1 - 2^(-5 - h).

    `sizes`: n_heads, n_kv_heads, head_dim, v_dim, theta, norm_eps.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    theta = sizes.get("theta", 10000.0)
    q = linear(weights, "q", x, n_heads, head_dim)
    k = linear(weights, "k", x, n_kv_heads, head_dim)
    v = linear(weights, "v", x, n_kv_heads, sizes["v_dim"])
    gate = silu(linear(weights, "gate", x, n_heads, sizes["v_dim"]))
    rows = []
    state = x.new_zeros(x.shape[0], n_heads, head_dim, sizes["v_dim"])
    for t in range(x.shape[1]):
        turned_q, turned_k = rotate(q[:, t], t, theta), rotate(k[:, t], t, theta)
        heads = []
        for h in range(n_heads):
            g = h * n_kv_heads // n_heads
            state[:, h] = (1 - 2.0 ** (-5 - h)) * state[:, h] + turned_k[:, g, :, None] * v[:, t, g, None, :]
            heads.append((state[:, h] * turned_q[:, h, :, None]).sum(-2) * head_dim**-0.5)
        o = rms_norm(torch.stack(heads, 1), weights["y_norm.weight"], sizes["norm_eps"])
        rows.append((o * gate[:, t]).flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
