"""NormAttention (Qin et al. 2022, arXiv 2210.10340, equations 11 and 12): every pair of tokens, then a norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16}),
    "first kind, no weight": Row(
        {"n_heads": 4, "n_kv_heads": 2, "feature_map": "elu", "norm_weight": False},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "shift": 0},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: o_t = RMSNorm(sum_{s <= t} (phi(q_t) . phi(k_s)) v_s) over all heads, phi = shift + elu.

    `sizes`: n_heads, n_kv_heads, head_dim, norm_eps, shift.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    q = linear(weights, "q", x, n_heads, head_dim)
    k, v = (linear(weights, name, x, n_kv_heads, head_dim) for name in "kv")

    def phi(u: Tensor) -> Tensor:
        return torch.where(u > 0, u, torch.expm1(u.clamp(max=0))) + sizes.get("shift", 1)

    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    weight = weights["o_norm.weight"].flatten() if "o_norm.weight" in weights else x.new_ones(())
    rows = []
    for t in range(x.shape[1]):
        scores = torch.einsum("bhk,bshk->bhs", phi(q[:, t]), phi(k[:, : t + 1])[:, :, group])
        o = torch.einsum("bhs,bshv->bhv", scores, v[:, : t + 1, group]).flatten(1)
        rows.append(rms_norm(o, weight, sizes["norm_eps"]))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
