"""cosFormer from its scores (Qin et al. 2022, arXiv 2202.08791, equation 11), every pair of tokens."""

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
    "grouped heads, a length of its own": Row(
        {"n_heads": 4, "n_kv_heads": 2, "max_length": 90},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "max_length": 90},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: o_i = sum_j s_ij v_j / max(sum_j s_ij, 1e-6).

    s_ij = (relu(q_i) . relu(k_j)) cos(pi/2 (i - j) / M) for j <= i.

    `sizes`: n_heads, n_kv_heads, head_dim, context, and max_length where it is not the context.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    longest = sizes.get("max_length", sizes["context"])
    q = linear(weights, "q", x, n_heads, head_dim).clamp(min=0)
    k = linear(weights, "k", x, n_kv_heads, head_dim).clamp(min=0)
    v = linear(weights, "v", x, n_kv_heads, head_dim)
    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    rows = []
    for i in range(x.shape[1]):
        near = torch.tensor([math.cos(math.pi / 2 * (i - j) / longest) for j in range(i + 1)], dtype=x.dtype)
        scores = torch.einsum("bhk,bjhk->bhj", q[:, i], k[:, : i + 1, group]) * near
        o = torch.einsum("bhj,bjhv->bhv", scores, v[:, : i + 1, group])
        rows.append((o / scores.sum(-1, keepdim=True).clamp(min=1e-6)).flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
