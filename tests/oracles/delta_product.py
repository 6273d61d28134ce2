"""DeltaProduct from its recurrence (Siems et al. 2025, section 3), a loop over tokens and the steps of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, short_conv, sigmoid, silu, softplus, unit
from tests.oracles.row import Row

ROWS = {
    "default": Row(
        {"n_heads": 2, "head_dim": 8}, {"n_heads": 2, "n_v_heads": 2, "head_dim": 8, "v_dim": 16, "n": 2}
    ),
    "gated": Row(
        {"n_heads": 2, "head_dim": 8, "gated": True, "n_factors": 3},
        {"n_heads": 2, "n_v_heads": 2, "head_dim": 8, "v_dim": 16, "n": 3, "gated": True},
    ),
    "grouped values, no gate, beta below 1": Row(
        {
            "n_heads": 2,
            "n_v_heads": 4,
            "head_dim": 8,
            "expand_v": 1,
            "gated": True,
            "negative_eigenvalues": False,
            "use_gate": False,
        },
        {
            "n_heads": 2,
            "n_v_heads": 4,
            "head_dim": 8,
            "v_dim": 8,
            "n": 2,
            "gated": True,
            "span": 1,
            "plain": True,
        },
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: H = alpha_t S_{t-1}; n times H = (I - beta k k^T) H + beta k v^T; o_t = H^T q / sqrt(K).

    `sizes`: n_heads, n_v_heads, head_dim, v_dim, n, norm_eps; where used gated, span (the largest beta), plain (no gate
    behind the norm).
    """
    n_heads, n_v_heads, head_dim, v_dim, n = (
        sizes[key] for key in ("n_heads", "n_v_heads", "head_dim", "v_dim", "n")
    )
    batch, length, d_model = x.shape
    group = [h * n_heads // n_v_heads for h in range(n_v_heads)]
    q = silu(short_conv(weights, "q_conv", linear(weights, "q", x, n_heads, head_dim)))
    k = silu(short_conv(weights, "k_conv", linear(weights, "k", x, n, n_heads, head_dim)))
    q, k = unit(q, 1e-6)[:, :, group], unit(k, 1e-6)[:, :, :, group]
    v = silu(short_conv(weights, "v_conv", linear(weights, "v", x, n, n_v_heads, v_dim)))
    beta = sizes.get("span", 2) * sigmoid(linear(weights, "beta", x, n, n_v_heads))
    alpha = torch.ones(batch, length, n_v_heads, dtype=x.dtype)
    if "gated" in sizes:
        dt = softplus(linear(weights, "decay", x, n_v_heads) + weights["decay_dt_bias"])
        alpha = torch.exp(-torch.exp(weights["decay_A_log"]) * dt)
    state = x.new_zeros(batch, n_v_heads, head_dim, v_dim)
    o = x.new_zeros(batch, length, n_v_heads, v_dim)
    identity = torch.eye(head_dim, dtype=x.dtype)
    for t in range(length):
        state = alpha[:, t, :, None, None] * state
        for j in range(n):
            here, weight = k[:, t, j], beta[:, t, j, :, None, None]
            householder = identity - weight * here[..., :, None] * here[..., None, :]
            state = householder @ state + weight * here[..., :, None] * v[:, t, j, :, None, :]
        o[:, t] = (q[:, t, :, :, None] * state).sum(-2) / head_dim**0.5
    o = rms_norm(o, weights["y_norm.weight"], sizes["norm_eps"])
    if "plain" not in sizes:
        o = o * silu(linear(weights, "gate", x, n_v_heads, v_dim))
    return linear(weights, "y", o.flatten(2), d_model)
