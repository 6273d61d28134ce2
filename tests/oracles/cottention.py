"""Cosine attention (Mongaras et al. 2024, arXiv 2409.18747) as its published code has it, every pair of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rotate_neighbours, sigmoid
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16}),
    "grouped heads, half rotated": Row(
        {"n_heads": 4, "n_kv_heads": 2, "fraction": 0.5},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "fraction": 0.5},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: o_i = sum_j cos(q_i, k_j) v_j / max((j + 1) ** sigmoid(m), 1).

    `sizes`: n_heads, n_kv_heads, head_dim, and fraction where heads are rotated in part.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    q = linear(weights, "q", x, n_heads, head_dim)
    k, v = (linear(weights, name, x, n_kv_heads, head_dim) for name in "kv")
    fraction = sizes.get("fraction", 1.0)

    def turned(u: Tensor) -> Tensor:
        rows = [rotate_neighbours(u[:, t], t, 10000.0, fraction) for t in range(u.shape[1])]
        return torch.nn.functional.normalize(torch.stack(rows, 1), dim=-1)

    q, k = turned(q), turned(k)
    power = sigmoid(weights["m"])
    v = torch.stack(
        [v[:, j] / torch.tensor(j + 1.0, dtype=x.dtype).pow(power)[:, None] for j in range(x.shape[1])], 1
    )
    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    rows = []
    for i in range(x.shape[1]):
        scores = torch.einsum("bhk,bjhk->bhj", q[:, i], k[:, : i + 1, group])
        rows.append(torch.einsum("bhj,bjhv->bhv", scores, v[:, : i + 1, group]).flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
