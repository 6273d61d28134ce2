"""Multi-head latent attention (DeepSeek-AI 2024, equations 9 to 19), query by query and head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, rotate
from tests.oracles.row import Row

SMALL = {"n_heads": 3, "kv_rank": 12, "nope_dim": 8, "rope_dim": 6, "v_dim": 10}
ROWS = {
    "low queries": Row(
        {**SMALL, "q_rank": 14, "rope": {"theta": 500}}, {**SMALL, "q_rank": 14, "theta": 500, "paired": True}
    ),
    "no positions": Row(SMALL, {**SMALL, "theta": None}),
    "halves": Row(
        {**SMALL, "rope": {"theta": 10000}, "interleaved": False, "scale_factor": 1.5},
        {**SMALL, "theta": 10000, "factor": 1.5},
    ),
}


def turn(sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`[B, T, ..., R]` turned by each token's place; neighbours or halves are the pairs."""
    if sizes["theta"] is None:
        return x
    if sizes.get("paired"):  # neighbours as halves: every score is the same sum in another order
        x = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
    return torch.stack([rotate(x[:, t], t, sizes["theta"]) for t in range(x.shape[1])], 1)


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`. `sizes`: n_heads, kv_rank, nope_dim, rope_dim, v_dim, theta, norm_eps, ..."""
    heads, rank, nope, value = sizes["n_heads"], sizes["kv_rank"], sizes["nope_dim"], sizes["v_dim"]
    c_q = x
    if "q_rank" in sizes:
        c_q = rms_norm(linear(weights, "q_a", x, sizes["q_rank"]), weights["q_norm.weight"], 1e-6)
    q = linear(weights, "q_b", c_q, heads, nope + sizes["rope_dim"])
    low = linear(weights, "kv_a", x, rank + sizes["rope_dim"])
    c = rms_norm(low[..., :rank], weights["c_norm.weight"], 1e-6)
    kv = linear(weights, "kv_b", c, heads, nope + value)
    q_place, k_place = turn(sizes, q[..., nope:]), turn(sizes, low[..., rank:])
    scale = sizes.get("factor", 1) * q.shape[-1] ** -0.5
    o = x.new_zeros(*x.shape[:2], heads, value)
    for t in range(x.shape[1]):
        for h in range(heads):
            alike = torch.einsum("bk,bsk->bs", q[:, t, h, :nope], kv[:, : t + 1, h, :nope])
            near = torch.einsum("bk,bsk->bs", q_place[:, t, h], k_place[:, : t + 1])
            weight = torch.softmax(scale * (alike + near), 1)
            o[:, t, h] = torch.einsum("bs,bsv->bv", weight, kv[:, : t + 1, h, nope:])
    return linear(weights, "y", o.flatten(2), x.shape[-1])
