"""Gated DeltaNet from its recurrence (Yang, Kautz, Hatamizadeh 2024, equation 10), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, short_conv, sigmoid, silu, softplus, unit
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 2, "head_dim": 8}, {"n_heads": 2, "n_v_heads": 2, "head_dim": 8, "v_dim": 16}),
    "grouped values, negative eigenvalues": Row(
        {"n_heads": 2, "n_v_heads": 4, "head_dim": 16, "expand_v": 1, "negative_eigenvalues": True},
        {"n_heads": 2, "n_v_heads": 4, "head_dim": 16, "v_dim": 16, "negative_eigenvalues": True},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T.

    `sizes`: n_heads, n_v_heads, head_dim, v_dim, norm_eps; and where used negative_eigenvalues.
    """
    n_heads, n_v_heads = sizes["n_heads"], sizes["n_v_heads"]
    head_dim, v_dim = sizes["head_dim"], sizes["v_dim"]
    batch, length, d_model = x.shape
    q = unit(silu(short_conv(weights, "q_conv", linear(weights, "q", x, n_heads, head_dim))), 1e-6)
    k = unit(silu(short_conv(weights, "k_conv", linear(weights, "k", x, n_heads, head_dim))), 1e-6)
    v = silu(short_conv(weights, "v_conv", linear(weights, "v", x, n_v_heads, v_dim)))
    group = [h * n_heads // n_v_heads for h in range(n_v_heads)]
    q, k = q[:, :, group] * head_dim**-0.5, k[:, :, group]
    beta = sigmoid(linear(weights, "beta", x, n_v_heads)) * (2 if sizes.get("negative_eigenvalues") else 1)
    dt = softplus(linear(weights, "decay", x, n_v_heads) + weights["decay_dt_bias"])
    alpha = torch.exp(-torch.exp(weights["decay_A_log"]) * dt)
    eye = torch.eye(head_dim, dtype=x.dtype)
    state = x.new_zeros(batch, n_v_heads, head_dim, v_dim)
    o = torch.zeros_like(v)
    for t in range(length):
        kt, bt = k[:, t], beta[:, t, :, None, None]
        reflected = eye - bt * kt[..., :, None] * kt[..., None, :]
        state = alpha[:, t, :, None, None] * reflected @ state + bt * kt[..., :, None] * v[:, t, :, None, :]
        o[:, t] = (state * q[:, t, :, :, None]).sum(-2)
    gate = silu(linear(weights, "gate", x, n_v_heads, v_dim))
    normed = rms_norm(o, weights["y_norm.weight"], sizes["norm_eps"])
    return linear(weights, "y", (normed * gate).flatten(2), d_model)
