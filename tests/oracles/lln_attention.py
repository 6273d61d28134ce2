"""Linear log-normal attention from its scores (Nahshan et al. 2023, arXiv 2311.13541), every pair of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "block": 16}),
    "no blocks": Row(
        {"n_heads": 4, "n_kv_heads": 2, "block": 0, "alpha": 1.5, "beta": 0.5},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "alpha": 1.5, "beta": 0.5},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: scores exp(alpha q_i) . exp(beta k_j) over their sum, and softmax inside blocks, halved.

    `sizes`: n_heads, n_kv_heads, head_dim; and where used alpha, beta, block.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    alpha, beta = sizes.get("alpha", 2.1355), sizes.get("beta", 2.1355)
    q = linear(weights, "q", x, n_heads, head_dim)
    k, v = (linear(weights, name, x, n_kv_heads, head_dim) for name in "kv")
    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    rows = []
    for i in range(x.shape[1]):
        phi_q = torch.exp(alpha * (q[:, i] - q[:, i].amax(-1, keepdim=True)))
        scores = torch.einsum("bhk,bjhk->bhj", phi_q, torch.exp(beta * k[:, : i + 1, group]))
        shares = scores / (scores.sum(-1, keepdim=True) + 1e-6)
        o = torch.einsum("bhj,bjhv->bhv", shares, v[:, : i + 1, group])
        if "block" in sizes:
            start = i - i % sizes["block"]
            near = torch.einsum("bhk,bjhk->bhj", q[:, i], k[:, start : i + 1, group]) / math.sqrt(head_dim)
            o = (o + torch.einsum("bhj,bjhv->bhv", near.softmax(-1), v[:, start : i + 1, group])) / 2
        rows.append(o.flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
