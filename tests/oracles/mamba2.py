"""Mamba-2 from its recurrence (Dao, Gu 2024, section 7 and the published layer), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, short_conv, silu, softplus
from tests.oracles.row import Row

ROWS = {
    "default": Row(
        {"head_dim": 16, "d_state": 16, "n_groups": 2},
        {"n_heads": 6, "head_dim": 16, "d_state": 16, "n_groups": 2},
    ),
    "bounded steps": Row(
        {"head_dim": 16, "d_state": 8, "dt_min": 0.01, "dt_max": 0.5},
        {"n_heads": 6, "head_dim": 16, "d_state": 8, "n_groups": 1, "dt_min": 0.01, "dt_max": 0.5},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: h_t = exp(dt A) h_{t-1} + dt B_t x_t^T, y_t = C_t^T h_t + D x_t.

    `sizes`: n_heads, head_dim, d_state, n_groups; and where used dt_min, dt_max.
    """
    n_heads, head_dim, d_state, n_groups = (
        sizes[key] for key in ("n_heads", "head_dim", "d_state", "n_groups")
    )
    batch, length, d_model = x.shape
    d_inner, bc = n_heads * head_dim, n_groups * d_state
    projected = x @ weights["in_proj.weight"].T
    z, xbc, dt = projected.split([d_inner, d_inner + 2 * bc, n_heads], dim=-1)
    xbc = silu(short_conv(weights, "mixed_conv", xbc))
    u, B, C = xbc.split([d_inner, bc, bc], dim=-1)
    u = u.reshape(batch, length, n_heads, head_dim)
    group = [h * n_groups // n_heads for h in range(n_heads)]
    B = B.reshape(batch, length, n_groups, d_state)[:, :, group]
    C = C.reshape(batch, length, n_groups, d_state)[:, :, group]
    dt = softplus(dt + weights["dt_bias"])
    if sizes.get("dt_max") is not None:
        dt = dt.clamp(sizes.get("dt_min", 0), sizes["dt_max"])
    A = -torch.exp(weights["A_log"])
    hidden = x.new_zeros(batch, n_heads, d_state, head_dim)
    y = torch.zeros_like(u)
    for t in range(length):
        kept = torch.exp(A * dt[:, t])[..., None, None]
        hidden = kept * hidden + dt[:, t, :, None, None] * B[:, t, :, :, None] * u[:, t, :, None, :]
        y[:, t] = (C[:, t, :, :, None] * hidden).sum(-2) + weights["D"][:, None] * u[:, t]
    gated = y.reshape(batch, length, d_inner) * silu(z)
    grouped = gated.reshape(batch, length, n_groups, d_inner // n_groups)
    weight = weights["y_norm.weight"].reshape(n_groups, d_inner // n_groups)
    return linear(weights, "y", rms_norm(grouped, weight, 1e-5).flatten(2), d_model)
