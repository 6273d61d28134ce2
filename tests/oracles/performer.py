"""Performer from its definition (Choromanski et al. 2020, arXiv 2009.14794, section 2), a loop over tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16}),
    "grouped heads, relu": Row(
        {"n_heads": 4, "n_kv_heads": 2, "kernel": "relu", "n_features": 9},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "kernel": "relu"},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: o_t = S_t^T phi(q_t) / (phi(q_t) . z_t + 1e-6), S_t += phi(k_t) v_t^T, z_t += phi(k_t).

    `sizes`: n_heads, n_kv_heads, head_dim, kernel.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    omega = weights["phi_omega"]
    q = linear(weights, "q", x, n_heads, head_dim)
    k, v = (linear(weights, name, x, n_kv_heads, head_dim) for name in "kv")

    def phi(u: Tensor, query: bool) -> Tensor:
        if sizes.get("kernel") == "relu":
            return ((u @ omega.T).clamp(min=0) + 0.001) / math.sqrt(len(omega))
        u = u / head_dim**0.25
        exponent = u @ omega.T - (u * u).sum(-1, keepdim=True) / 2
        if query:
            exponent = exponent - exponent.amax(-1, keepdim=True)
        return (torch.exp(exponent) + 1e-4) / math.sqrt(len(omega))

    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    state, total, rows = torch.zeros((), dtype=x.dtype), torch.zeros((), dtype=x.dtype), []
    for t in range(x.shape[1]):
        phi_q, phi_k = phi(q[:, t], True), phi(k[:, t], False)[:, group]
        state = state + phi_k.unsqueeze(-1) * v[:, t, group].unsqueeze(-2)
        total = total + phi_k
        o = (state * phi_q.unsqueeze(-1)).sum(-2) / ((total * phi_q).sum(-1, keepdim=True) + 1e-6)
        rows.append(o.flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
