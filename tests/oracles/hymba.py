"""Hymba's parallel heads (Dong et al. 2024, equations 1 to 4): attention query by query, Mamba token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, rotate, short_conv, silu, softplus
from tests.oracles.row import Row

SMALL = {"n_heads": 4, "n_kv_heads": 2, "d_state": 5, "dt_rank": 3}
ROWS = {
    "window": Row({**SMALL, "window": 7, "theta": 500}, {**SMALL, "head_dim": 12, "window": 7, "theta": 500}),
    "full": Row(
        {**SMALL, "head_dim": 6, "expand": 1, "conv": 3},
        {**SMALL, "head_dim": 6, "window": None, "theta": 10000},
    ),
}


def attend(weights: Weights, sizes: Mapping[str, Any], x: Tensor, value: int) -> Tensor:
    """`[B, T, heads * value]`: the heads of attention, whose values are wider than their keys."""
    heads, kv_heads, width = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    q, k = (linear(weights, name, x, count, width) for name, count in (("q", heads), ("k", kv_heads)))
    v = linear(weights, "v", x, kv_heads, value)
    q, k = (torch.stack([rotate(z[:, t], t, sizes["theta"]) for t in range(x.shape[1])], 1) for z in (q, k))
    o = x.new_zeros(*x.shape[:2], heads, value)
    for t in range(x.shape[1]):
        start = 0 if sizes["window"] is None else max(0, t + 1 - sizes["window"])
        for h in range(heads):
            group = h * kv_heads // heads
            scores = torch.einsum("bk,bsk->bs", q[:, t, h], k[:, start : t + 1, group]) * width**-0.5
            o[:, t, h] = torch.einsum("bs,bsv->bv", torch.softmax(scores, 1), v[:, start : t + 1, group])
    return o.flatten(2)


def remember(weights: Weights, sizes: Mapping[str, Any], x: Tensor, inner: int) -> Tensor:
    """`[B, T, inner]`: h_t = exp(dt A) h_{t-1} + dt B u, times its gate."""
    state, rank, eps = sizes["d_state"], sizes["dt_rank"], sizes["norm_eps"]
    u, z = linear(weights, "in_proj", x, 2 * inner).split(inner, -1)
    u = silu(short_conv(weights, "u_conv", u))
    low, b, c = linear(weights, "x_proj", u, rank + 2 * state).split([rank, state, state], -1)
    low, b, c = (
        rms_norm(value, weights[f"{name}_norm.weight"], eps)
        for name, value in (("low", low), ("B", b), ("C", c))
    )
    dt = softplus(linear(weights, "dt", low, inner) + weights["dt_bias"])
    decay = -torch.exp(weights["A_log"])
    h = x.new_zeros(x.shape[0], inner, state)
    out = torch.zeros_like(u)
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * decay) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        out[:, t] = (h * c[:, t, None]).sum(-1)
    return (out + weights["D"] * u) * silu(z)


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`. `sizes`: n_heads, n_kv_heads, head_dim, d_state, dt_rank, window, theta, norm_eps."""
    inner = weights["D"].shape[0]
    attended = attend(weights, sizes, x, inner // sizes["n_heads"])
    remembered = remember(weights, sizes, x, inner)
    mean = 0.5 * rms_norm(attended, weights["attended_norm.weight"], sizes["norm_eps"])
    mean = mean + 0.5 * rms_norm(remembered, weights["remembered_norm.weight"], sizes["norm_eps"])
    return linear(weights, "y", mean, x.shape[-1])
