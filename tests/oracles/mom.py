"""Mixture of memories from its equations (Du et al. 2025, section 3), memory by memory over its own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, short_conv, sigmoid, silu, softplus, unit
from tests.oracles.row import Row

SIZES = {"n_heads": 2, "head_dim": 8, "v_dim": 8, "n_memories": 4, "top_k": 2}
ROWS = {
    "default": Row({"n_heads": 2, "head_dim": 8}, SIZES),
    "one of three, nothing shared": Row(
        {
            "n_heads": 3,
            "head_dim": 8,
            "expand_v": 2,
            "n_memories": 3,
            "top_k": 1,
            "conv": 3,
            "shared_memory": False,
        },
        {**SIZES, "n_heads": 3, "v_dim": 16, "n_memories": 3, "top_k": 1},
    ),
}


def memory(weights: Weights, own: str, sizes: Mapping[str, Any], u: Tensor) -> Tensor:
    """Gated DeltaNet over the tokens `u [1, n, d_model]` that a memory sees; `own` begins the names of its weights."""
    n_heads, head_dim, v_dim = sizes["n_heads"], sizes["head_dim"], sizes["v_dim"]
    q = unit(silu(short_conv(weights, "q_conv", linear(weights, "q", u, n_heads, head_dim))), 1e-6)
    k = unit(silu(short_conv(weights, "k_conv", linear(weights, f"{own}.k", u, n_heads, head_dim))), 1e-6)
    v = silu(short_conv(weights, "v_conv", linear(weights, f"{own}.v", u, n_heads, v_dim)))
    beta = sigmoid(linear(weights, f"{own}.beta", u, n_heads))
    dt = softplus(linear(weights, f"{own}.dt", u, n_heads) + weights["dt_bias"])
    alpha = torch.exp(-torch.exp(weights["A_log"]) * dt)
    state = u.new_zeros(1, n_heads, head_dim, v_dim)
    o = torch.zeros_like(v)
    for t in range(u.shape[1]):
        key, step = k[:, t, :, :, None], beta[:, t, :, None, None]
        state = alpha[:, t, :, None, None] * state
        held = (state * key).sum(-2, keepdim=True)
        state = state + step * key * (v[:, t, :, None, :] - held)
        o[:, t] = (state * q[:, t, :, :, None]).sum(-2) * head_dim**-0.5
    return o


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: each sequence and each memory by itself, then weighted sums and the gated norm.

    `sizes`: n_heads, head_dim, v_dim, n_memories, top_k, norm_eps.
    """
    n_heads, v_dim = sizes["n_heads"], sizes["v_dim"]
    batch, length, d_model = x.shape
    logits = linear(weights, "router", x, sizes["n_memories"])
    p = torch.exp(logits - logits.amax(-1, keepdim=True))
    p = p / p.sum(-1, keepdim=True)
    o = x.new_zeros(batch, length, n_heads, v_dim)
    for b in range(batch):
        chosen = [set(p[b, t].topk(sizes["top_k"]).indices.tolist()) for t in range(length)]
        for m in range(sizes["n_memories"]):
            own = [t for t in range(length) if m in chosen[t]]
            read = memory(weights, f"memory.{m}", sizes, x[b : b + 1, own])[0]
            for t, value in zip(own, read, strict=True):
                o[b, t] += p[b, t, m] / sum(p[b, t, n] for n in chosen[t]) * value
        if "shared.k.weight" in weights:
            o[b] += memory(weights, "shared", sizes, x[b : b + 1])[0]
    gate = silu(linear(weights, "gate", x, n_heads, v_dim))
    normed = rms_norm(o, weights["y_norm.weight"], sizes["norm_eps"])
    return linear(weights, "y", (normed * gate).flatten(2), d_model)
