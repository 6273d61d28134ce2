"""Attention with bounded memory from its slots (Peng et al. 2021, section 2), formed anew for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, rotate, silu
from tests.oracles.row import Row

SIZES = {"n_heads": 3, "head_dim": 8, "v_dim": 16, "n_slots": 8, "theta": 10000.0, "bound": 32}
ROWS = {
    "default": Row({"n_heads": 3}, SIZES),
    "no positions, steep scores, other gates": Row(
        {"n_heads": 2, "rotate": False, "n_slots": 5, "input_gate": True, "output_gate": False, "bound": 3},
        {
            "n_heads": 2,
            "head_dim": 12,
            "v_dim": 24,
            "n_slots": 5,
            "input_gate": True,
            "plain": True,
            "bound": 3,
        },
        scale=3.0,
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: a slot is the mean of keys, or values, weighted by exp(s) over the tokens so far.

    `sizes`: n_heads, head_dim, v_dim, n_slots, bound, norm_eps; and where used theta, input_gate, plain.
    """
    n_heads, head_dim, v_dim, n_slots = (sizes[n] for n in ("n_heads", "head_dim", "v_dim", "n_slots"))
    batch, length, d_model = x.shape
    q = linear(weights, "q", x, n_heads, head_dim)
    k = linear(weights, "k", x, n_heads, head_dim)
    v = linear(weights, "v", x, n_heads, v_dim)
    if sizes.get("input_gate"):
        q, k, v = silu(q), silu(k), silu(v)
    if sizes.get("theta"):
        q = torch.stack([rotate(q[:, t], t, sizes["theta"]) for t in range(length)], 1)
        k = torch.stack([rotate(k[:, t], t, sizes["theta"]) for t in range(length)], 1)
    s = linear(weights, "score", x, n_heads, n_slots).clamp(-sizes["bound"], sizes["bound"])
    o = torch.zeros_like(v)
    for t in range(length):
        power = torch.exp(s[:, : t + 1])
        power = power / power.sum(1, keepdim=True)
        keys = (power[..., None] * k[:, : t + 1, :, None]).sum(1)
        values = (power[..., None] * v[:, : t + 1, :, None]).sum(1)
        scores = (keys * q[:, t, :, None]).sum(-1) * head_dim**-0.5
        p = torch.exp(scores - scores.amax(-1, keepdim=True))
        o[:, t] = ((p / p.sum(-1, keepdim=True))[..., None] * values).sum(2)
    normed = rms_norm(o, weights["normed_norm.weight"], sizes["norm_eps"])
    gate = 1 if sizes.get("plain") else silu(linear(weights, "gate", x, n_heads, v_dim))
    return linear(weights, "y", (normed * gate).flatten(2), d_model)
