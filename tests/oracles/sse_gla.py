"""Sparse state expansion of gated linear attention (Pan et al. 2025, section 3), partition by partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, sigmoid, silu
from tests.oracles.row import Row

SIZES = {
    "n_heads": 2,
    "n_v_heads": 2,
    "head_dim": 8,
    "v_dim": 8,
    "n_partitions": 4,
    "top_k": 1,
    "gate_rank": 16,
}
ROWS = {
    "default": Row({"n_heads": 2, "head_dim": 8}, SIZES),
    "two of three, grouped values": Row(
        {
            "n_heads": 2,
            "n_v_heads": 4,
            "head_dim": 6,
            "expand_v": 2,
            "n_partitions": 3,
            "top_k": 2,
            "gate_rank": 5,
        },
        {
            "n_heads": 2,
            "n_v_heads": 4,
            "head_dim": 6,
            "v_dim": 12,
            "n_partitions": 3,
            "top_k": 2,
            "gate_rank": 5,
        },
    ),
}


def softmax(x: Tensor) -> Tensor:
    """Over the last axis."""
    power = torch.exp(x - x.amax(-1, keepdim=True))
    return power / power.sum(-1, keepdim=True)


def projections(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Queries and keys `[B, T, H, K]` before their activations: of the shared partition, and of the routed ones."""
    n_heads, head_dim, v_dim = sizes["n_heads"], sizes["head_dim"], sizes["v_dim"]
    found = []
    for name in ("q", "k"):
        first = linear(weights, name, x, n_heads, head_dim)
        low = linear(weights, f"{name}_low", x, v_dim)
        found.append([first, first + linear(weights, f"{name}_routed", low, n_heads, head_dim)])
    return found[0], found[1]


def output(weights: Weights, sizes: Mapping[str, Any], x: Tensor, o: Tensor) -> Tensor:
    """The norm of each head, the gate of low rank and the last projection: `o [B, T, H, V] -> [B, T, d_model]`."""
    gate = silu(linear(weights, "gate", linear(weights, "gate_low", x, sizes["v_dim"]), *o.shape[2:]))
    normed = rms_norm(o, weights["y_norm.weight"], sizes["norm_eps"])
    return linear(weights, "y", (normed * gate).flatten(2), x.shape[-1])


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: one state for all tokens, and one for each partition, which only its tokens touch.

    `sizes`: n_heads, n_v_heads, head_dim, v_dim, n_partitions, top_k, gate_rank, norm_eps.
    """
    n_heads, n_v_heads, head_dim, v_dim = (sizes[n] for n in ("n_heads", "n_v_heads", "head_dim", "v_dim"))
    batch, length, _ = x.shape
    group = [h * n_heads // n_v_heads for h in range(n_v_heads)]
    queries, keys = projections(weights, sizes, x)
    queries = [silu(q)[:, :, group] * head_dim**-0.5 for q in queries]
    keys = [softmax(k)[:, :, group] for k in keys]
    v = silu(linear(weights, "v", x, n_v_heads, v_dim))
    alphas = []
    for name in ("decay", "decay_routed"):
        low = linear(weights, f"{name}_low", x, sizes["gate_rank"])
        alphas.append(sigmoid(linear(weights, name, low, n_heads, head_dim))[:, :, group] ** (1 / 16))
    p = softmax(linear(weights, "router", x, sizes["n_partitions"]))
    o = torch.zeros_like(v)
    for b in range(batch):
        states = x.new_zeros(1 + sizes["n_partitions"], n_v_heads, head_dim, v_dim)
        for t in range(length):
            write = keys[0][b, t, :, :, None] * v[b, t, :, None, :]
            states[0] = alphas[0][b, t, :, :, None] * states[0] + write
            o[b, t] += (states[0] * queries[0][b, t, :, :, None]).sum(-2)
            for n in p[b, t].topk(sizes["top_k"]).indices.tolist():
                write = p[b, t, n] * keys[1][b, t, :, :, None] * v[b, t, :, None, :]
                states[1 + n] = alphas[1][b, t, :, :, None] * states[1 + n] + write
                o[b, t] += (states[1 + n] * (p[b, t, n] * queries[1][b, t, :, :, None])).sum(-2)
    return output(weights, sizes, x, o)
