"""Kimi Delta Attention from its recurrence (Kimi Team 2025, equation 1), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, short_conv, sigmoid, silu, softplus, unit
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 2, "head_dim": 16}, {"n_heads": 2, "head_dim": 16, "v_dim": 16, "rank": 16}),
    "wide values, biased gate, negative eigenvalues": Row(
        {"n_heads": 2, "head_dim": 8, "expand_v": 2, "gate_bias": True, "negative_eigenvalues": True},
        {"n_heads": 2, "head_dim": 8, "v_dim": 16, "rank": 8, "negative_eigenvalues": True},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T.

    `sizes`: n_heads, head_dim, v_dim, rank, norm_eps; and where used negative_eigenvalues.
    """
    n_heads, head_dim, v_dim, rank = (sizes[key] for key in ("n_heads", "head_dim", "v_dim", "rank"))
    batch, length, d_model = x.shape
    q = unit(silu(short_conv(weights, "q_conv", linear(weights, "q", x, n_heads, head_dim))), 1e-6)
    k = unit(silu(short_conv(weights, "k_conv", linear(weights, "k", x, n_heads, head_dim))), 1e-6)
    v = silu(short_conv(weights, "v_conv", linear(weights, "v", x, n_heads, v_dim)))
    q = q * head_dim**-0.5
    beta = sigmoid(linear(weights, "beta", x, n_heads)) * (2 if sizes.get("negative_eigenvalues") else 1)
    step = linear(weights, "decay", linear(weights, "decay_low", x, rank), n_heads, head_dim)
    dt = softplus(step + weights["decay_dt_bias"])
    alpha = torch.exp(-torch.exp(weights["decay_A_log"])[:, None] * dt)
    eye = torch.eye(head_dim, dtype=x.dtype)
    state = x.new_zeros(batch, n_heads, head_dim, v_dim)
    o = torch.zeros_like(v)
    for t in range(length):
        kt, bt = k[:, t], beta[:, t, :, None, None]
        reflected = eye - bt * kt[..., :, None] * kt[..., None, :]
        state = reflected @ (alpha[:, t, :, :, None] * state) + bt * kt[..., :, None] * v[:, t, :, None, :]
        o[:, t] = (state * q[:, t, :, :, None]).sum(-2)
    gate = sigmoid(linear(weights, "gate", linear(weights, "gate_low", x, rank), n_heads, v_dim))
    normed = rms_norm(o, weights["y_norm.weight"], sizes["norm_eps"])
    return linear(weights, "y", (normed * gate).flatten(2), d_model)
