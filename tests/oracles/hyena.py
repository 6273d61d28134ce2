"""The Hyena operator from its equations (Poli et al. 2023, and the published layer), convolutions as sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, short_conv
from tests.oracles.row import Row

ROWS = {
    # With sines of 14 times the argument float32 is too coarse to tell two forms apart: the laws have slower ones.
    "slow sines": Row({"bands": 3, "width": 8, "w": 1}, {"order": 2, "bands": 3, "n_inner": 2, "shift": 0}),
    "default": Row({"bands": 3, "width": 8}, {"order": 2, "bands": 3, "n_inner": 2, "shift": 0}),
    "order 3": Row(
        {"order": 3, "bands": 1, "width": 8, "n_inner": 3, "w": 4, "shift": 0.05},
        {"order": 3, "bands": 1, "n_inner": 3, "shift": 0.05},
    ),
    "filters shorter than the sequence": Row(
        {"bands": 2, "width": 8, "lags": 24, "n_inner": 0},
        {"order": 2, "bands": 2, "n_inner": 0, "shift": 0, "lags": 24},
    ),
}


def filters(weights: Weights, sizes: Mapping[str, Any], d_model: int, like: Tensor) -> Tensor:
    """`[lags, d_model, order - 1]`: an MLP of sines of the lag, times the window."""
    lags, bands, count = sizes.get("lags", sizes["context"]), sizes["bands"], sizes["order"] - 1
    rows = []
    for lag in range(lags):
        frequencies = [1e-4 + j * (bands - 1 - 1e-4) / max(bands - 1, 1) for j in range(bands)]
        angles = [-2 * math.pi * lag / lags * f for f in frequencies]
        features = [lag / (lags - 1), *(math.cos(a) for a in angles), *(math.sin(a) for a in angles)]
        rows.append(torch.tensor(features, dtype=like.dtype))
    z = torch.stack(rows)
    for layer in range(sizes["n_inner"] + 1):
        z = torch.sin(weights["freq"] * linear(weights, f"filter_{layer}", z, -1))
    h = linear(weights, "filter", z, d_model * count)
    fast, slow = math.log(1e-2) / 0.3, math.log(1e-2) / 1.5
    deltas = torch.linspace(slow, fast, d_model * count, dtype=torch.float64).to(like.dtype)
    t = torch.arange(lags, dtype=like.dtype)[:, None] / (lags - 1)
    return (h * (torch.exp(-t * deltas.abs()) + sizes["shift"])).reshape(lags, d_model, count)


def long_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """`x [B, T, d]`, `kernel [L, d]`: y_t = sum_l kernel_l x_{t-l}."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for lag in range(min(t + 1, len(kernel))):
            y[:, t] += kernel[lag] * x[:, t - lag]
    return y


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`. `sizes`: order, bands, n_inner, shift, context, and where it differs lags."""
    order, d_model = sizes["order"], x.shape[-1]
    u = linear(weights, "in_proj", x, (order + 1) * d_model)
    *gates, v = short_conv(weights, "parts_conv", u).split(d_model, dim=-1)
    h = filters(weights, sizes, d_model, x)
    for step, gate in enumerate(reversed(gates[1:])):
        v = gate * v
        v = long_conv(v, h[..., step]) + weights["bias"][:, step] * v
    return linear(weights, "y", gates[0] * v, d_model)
