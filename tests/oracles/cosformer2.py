"""cosFormer2 from its scores (Shen et al. 2024, arXiv 2406.16690), every pair of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "gate_rank": 16}),
    "another rank": Row({"n_heads": 4, "gate_rank": 5}, {"n_heads": 4, "gate_rank": 5}),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: scores silu(q_i) . (silu(k_j) cos(theta (i - j))), the gate, and the norm over all heads.

    `sizes`: n_heads, gate_rank, norm_eps.
    """
    n_heads = sizes["n_heads"]
    q, k, v = (linear(weights, name, x, n_heads, x.shape[-1] // n_heads) for name in "qkv")
    gate = sigmoid(linear(weights, "gate", linear(weights, "gate_low", x, sizes["gate_rank"]), x.shape[-1]))
    rows = []
    for i in range(x.shape[1]):
        back = torch.arange(i, -1, -1, dtype=x.dtype)[:, None, None]
        turned = silu(k[:, : i + 1]) * torch.cos(weights["angles_theta"] * back)
        scores = torch.einsum("bhk,bjhk->bhj", silu(q[:, i]), turned)
        o = torch.einsum("bhj,bjhv->bhv", scores, v[:, : i + 1]).flatten(1) * gate[:, i]
        rows.append(rms_norm(o, weights["y_norm.weight"].flatten(), sizes["norm_eps"]))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
