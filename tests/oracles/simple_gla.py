"""Gated linear attention with one gate a head (Yang et al. 2023, section 4 with a scalar alpha), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, rotate_neighbours, short_conv, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row(
        {"n_heads": 3}, {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "v_dim": 16, "conv": True}
    ),
    "gated retention of YOCO": Row(
        {"n_heads": 4, "conv": 0, "rope": {"theta": 10000}, "gate_bias": False, "norm_weight": False},
        {"n_heads": 4, "n_kv_heads": 4, "head_dim": 12, "v_dim": 12, "theta": 10000.0},
    ),
    "grouped heads": Row(
        {"n_heads": 4, "n_kv_heads": 2, "expand_k": 0.5, "expand_v": 2, "tau": 4, "conv": 3},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "v_dim": 24, "tau": 4, "conv": True},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = alpha_t S_{t-1} + k_t v_t^T, o_t = S_t^T q_t / sqrt(K).

    `sizes`: n_heads, n_kv_heads, head_dim, v_dim, norm_eps; and where used conv, theta, tau.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    q = linear(weights, "q", x, n_heads, head_dim)
    k = linear(weights, "k", x, n_kv_heads, head_dim)
    v = linear(weights, "v", x, n_kv_heads, sizes["v_dim"])
    if sizes.get("conv"):
        q, k, v = (silu(short_conv(weights, f"{name}_conv", u)) for name, u in (("q", q), ("k", k), ("v", v)))
    alpha = sigmoid(linear(weights, "decay", x, n_heads)) ** (1 / sizes.get("tau", 16))
    gate = silu(linear(weights, "gate", x, n_heads, sizes["v_dim"]))
    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    weight = weights.get("y_norm.weight", torch.ones((), dtype=x.dtype))
    state, rows = torch.zeros((), dtype=x.dtype), []
    for t in range(x.shape[1]):
        q_t, k_t = q[:, t], k[:, t]
        if "theta" in sizes:
            q_t, k_t = rotate_neighbours(q_t, t, sizes["theta"]), rotate_neighbours(k_t, t, sizes["theta"])
        written = k_t[:, group, :, None] * v[:, t, group, None, :]
        state = alpha[:, t, :, None, None] * state + written
        o = (state * q_t.unsqueeze(-1)).sum(-2) * head_dim**-0.5
        rows.append((rms_norm(o, weight, sizes["norm_eps"]) * gate[:, t]).flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
