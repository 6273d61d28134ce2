"""Mamba from its recurrence (Gu, Dao 2023, section 3 and the published layer), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, short_conv, silu, softplus
from tests.oracles.row import Row

ROWS = {
    "default": Row({"d_state": 8}, {"d_state": 8}),
    "norms as in Jamba, biases": Row(
        {"d_state": 4, "inner_norm": "learned", "norm_eps": 1e-3, "bias": True, "conv": 3, "dt_rank": 5},
        {"d_state": 4, "inner_norm": "learned", "inner_eps": 1e-3},
    ),
    "norms as in Falcon-Mamba": Row(
        {"d_state": 8, "inner_norm": "fixed", "expand": 1, "conv_bias": False},
        {"d_state": 8, "inner_norm": "fixed", "inner_eps": 1e-6},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: h_t = exp(dt A) h_{t-1} + dt B_t x_t for each channel, y_t = C_t h_t + D x_t.

    `sizes`: d_state; with norms inside inner_norm ("learned" or "fixed") and inner_eps.
    """
    batch, length, d_model = x.shape
    n = sizes["d_state"]
    d_inner, dt_rank = weights["dt.weight"].shape
    u, z = linear(weights, "in_proj", x, 2 * d_inner).split([d_inner, d_inner], -1)
    u = silu(short_conv(weights, "v_conv", u))
    dt, B, C = linear(weights, "x_proj", u, dt_rank + 2 * n).split([dt_rank, n, n], -1)
    if "inner_norm" in sizes:
        dt, B, C = (
            rms_norm(part, weights.get(f"{name}_norm.weight", torch.ones_like(part)), sizes["inner_eps"])
            for name, part in (("low", dt), ("k", B), ("q", C))
        )
        assert ("k_norm.weight" in weights) == (sizes["inner_norm"] == "learned")
    dt = softplus(linear(weights, "dt", dt, d_inner) + weights["dt_bias"])
    A = -torch.exp(weights["A_log"])
    hidden = x.new_zeros(batch, d_inner, n)
    y = torch.zeros_like(u)
    for t in range(length):
        step = dt[:, t, :, None]
        hidden = torch.exp(step * A) * hidden + step * B[:, t, None, :] * u[:, t, :, None]
        y[:, t] = (hidden * C[:, t, None, :]).sum(-1) + weights["D"] * u[:, t]
    return linear(weights, "y", y * silu(z), d_model)
