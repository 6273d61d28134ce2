"""Sparse state expansion of Gated DeltaNet (Pan et al. 2025, section 3), partition by partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, sigmoid, silu, softplus, unit
from tests.oracles.row import Row
from tests.oracles.sse_gla import output, projections, softmax

SIZES = {"n_heads": 2, "n_v_heads": 2, "head_dim": 8, "v_dim": 16, "n_partitions": 4, "top_k": 1}
ROWS = {
    "default": Row({"n_heads": 2, "head_dim": 8}, SIZES),
    "two of three, grouped values": Row(
        {
            "n_heads": 2,
            "n_v_heads": 4,
            "head_dim": 6,
            "expand_v": 1,
            "n_partitions": 3,
            "top_k": 2,
            "negative_eigenvalues": True,
        },
        {"n_heads": 2, "n_v_heads": 4, "head_dim": 6, "v_dim": 6, "n_partitions": 3, "top_k": 2, "most": 2},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: one state for all tokens, and one for each partition, which only its tokens touch.

    `sizes`: n_heads, n_v_heads, head_dim, v_dim, n_partitions, top_k, norm_eps; and where used most, that of beta.
    """
    n_heads, n_v_heads, head_dim, v_dim = (sizes[n] for n in ("n_heads", "n_v_heads", "head_dim", "v_dim"))
    batch, length, _ = x.shape
    group = [h * n_heads // n_v_heads for h in range(n_v_heads)]
    queries, keys = projections(weights, sizes, x)
    v = silu(linear(weights, "v", x, n_v_heads, v_dim))
    dt = softplus(linear(weights, "decays", x, 2 * n_v_heads) + weights["decays_dt_bias"])
    alpha = torch.exp(-torch.exp(weights["decays_A_log"]) * dt)
    beta = sizes.get("most", 1) * sigmoid(linear(weights, "betas", x, 2 * n_v_heads))
    p = softmax(linear(weights, "router", x, sizes["n_partitions"]))
    o = torch.zeros_like(v)
    for b in range(batch):
        states = x.new_zeros(1 + sizes["n_partitions"], n_v_heads, head_dim, v_dim)
        for t in range(length):
            for n in [None, *p[b, t].topk(sizes["top_k"]).indices.tolist()]:
                kind = 0 if n is None else 1
                q = unit(silu(queries[kind][b, t, group]), 1e-6)[:, :, None] * head_dim**-0.5
                k = unit(silu(keys[kind][b, t, group]), 1e-6)[:, :, None]
                heads = slice(kind * n_v_heads, (kind + 1) * n_v_heads)
                at = 0 if n is None else 1 + n
                kept = alpha[b, t, heads, None, None] * states[at]
                held = (kept * k).sum(-2, keepdim=True)
                states[at] = kept + beta[b, t, heads, None, None] * k * (v[b, t, :, None, :] - held)
                o[b, t] += (states[at] * q).sum(-2)
    return output(weights, sizes, x, o)
