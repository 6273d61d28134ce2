"""Gated linear attention from its recurrence (Yang et al. 2023, equation 3), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row(
        {"n_heads": 3},
        {"n_heads": 3, "n_kv_heads": 3, "head_dim": 8, "v_dim": 16, "gate_rank": 16, "tau": 16},
    ),
    "grouped heads": Row(
        {"n_heads": 4, "n_kv_heads": 2, "tau": 4},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "v_dim": 12, "gate_rank": 16, "tau": 4},
    ),
}


def projections(
    weights: Weights, sizes: Mapping[str, Any], x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, alpha `[B, T, H, K]` and v `[B, T, H, V]`, key heads repeated for their queries."""
    n_heads, n_kv_heads = sizes["n_heads"], sizes["n_kv_heads"]
    head_dim, v_dim = sizes["head_dim"], sizes["v_dim"]
    q = linear(weights, "q", x, n_heads, head_dim) * head_dim**-0.5
    k = linear(weights, "k", x, n_kv_heads, head_dim)
    v = linear(weights, "v", x, n_kv_heads, v_dim)
    low = linear(weights, "low", x, sizes["gate_rank"])
    alpha = sigmoid(linear(weights, "decay", low, n_kv_heads, head_dim)) ** (1 / sizes["tau"])
    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    return q, k[:, :, group], v[:, :, group], alpha[:, :, group]


def output(weights: Weights, sizes: Mapping[str, Any], x: Tensor, o: Tensor) -> Tensor:
    """The norm of each head, the gate and the last projection: `o [B, T, H, V] -> [B, T, d_model]`."""
    gate = silu(linear(weights, "gate", x, *o.shape[2:]))
    o = rms_norm(o, weights["y_norm.weight"], sizes["norm_eps"]) * gate
    return linear(weights, "y", o.flatten(2), x.shape[-1])


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t / sqrt(K).

    `sizes`: n_heads, n_kv_heads, head_dim, v_dim, gate_rank, tau, norm_eps.
    """
    q, k, v, alpha = projections(weights, sizes, x)
    batch, length, n_heads, head_dim = q.shape
    state = x.new_zeros(batch, n_heads, head_dim, v.shape[-1])
    o = torch.zeros_like(v)
    for t in range(length):
        state = alpha[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        o[:, t] = (state * q[:, t, :, :, None]).sum(-2)
    return output(weights, sizes, x, o)


def forward_quadratic(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """The same as attention: o_t = sum_{s <= t} (sum_i q_ti k_si prod_{s < r <= t} alpha_ri) v_s."""
    q, k, v, alpha = projections(weights, sizes, x)
    o = torch.zeros_like(v)
    for t in range(x.shape[1]):
        for s in range(t + 1):
            kept = alpha[:, s + 1 : t + 1].prod(1)
            o[:, t] += (q[:, t] * k[:, s] * kept).sum(-1, keepdim=True) * v[:, s]
    return output(weights, sizes, x, o)
