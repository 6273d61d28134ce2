"""DiagAttention (Qin et al. 2022, arXiv 2210.10340, section 4.2): softmax inside blocks, one block after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3, "block": 16}, {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "block": 16}),
    "grouped heads": Row(
        {"n_heads": 4, "n_kv_heads": 2, "block": 7},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "block": 7},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: token t sees the tokens s <= t of its own block of tokens.

    `sizes`: n_heads, n_kv_heads, head_dim, block.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    q = linear(weights, "q", x, n_heads, head_dim)
    k, v = (linear(weights, name, x, n_kv_heads, head_dim) for name in "kv")
    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    rows = []
    for t in range(x.shape[1]):
        start = t - t % sizes["block"]
        scores = torch.einsum("bhk,bshk->bhs", q[:, t], k[:, start : t + 1, group]) / math.sqrt(head_dim)
        o = torch.einsum("bhs,bshv->bhv", scores.softmax(-1), v[:, start : t + 1, group])
        rows.append(o.flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
