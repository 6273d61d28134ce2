"""Forgetting attention from its definition (Lin et al. 2025, equations 4 to 6), one query and one head at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, shifted, sigmoid
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 4}, {"n_heads": 4, "n_kv_heads": 4, "head_dim": 12}),
    "published large block": Row(
        {"n_heads": 4, "qk_norm": True, "kv_shift": True, "output_norm": True, "output_gate": True},
        {
            "n_heads": 4,
            "n_kv_heads": 4,
            "head_dim": 12,
            "qk_norm": True,
            "kv_shift": True,
            "output_gate": True,
        },
    ),
    "grouped, windowed, gated": Row(
        {"n_heads": 4, "n_kv_heads": 2, "window": 9, "output_gate": True, "qkv_bias": True, "kv_shift": True},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "window": 9, "output_gate": True, "kv_shift": True},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: the weight of token s for query t is exp(q_t k_s / sqrt(d)) times f_{s+1} ... f_t.

    `sizes`: n_heads, n_kv_heads, head_dim, norm_eps; and where used window, qk_norm, kv_shift, output_gate.
    """
    n_heads, n_kv_heads, head_dim, eps = (sizes[n] for n in ("n_heads", "n_kv_heads", "head_dim", "norm_eps"))
    batch, length, d_model = x.shape
    q = linear(weights, "q", x, n_heads, head_dim)
    k = linear(weights, "k", x, n_kv_heads, head_dim)
    v = linear(weights, "v", x, n_kv_heads, head_dim)
    if sizes.get("kv_shift"):
        keep_k = sigmoid(linear(weights, "k_shift", x, n_kv_heads))[..., None]
        keep_v = sigmoid(linear(weights, "v_shift", x, n_kv_heads))[..., None]
        k = keep_k * shifted(k) + (1 - keep_k) * k
        v = keep_v * shifted(v) + (1 - keep_v) * v
    if sizes.get("qk_norm"):
        q = rms_norm(q, weights["q_norm.weight"].reshape(n_heads, head_dim), eps)
        k = rms_norm(k, weights["k_norm.weight"].reshape(n_kv_heads, head_dim), eps)
    forget = sigmoid(linear(weights, "log_f", x, n_heads))
    o = torch.zeros_like(q)
    for h in range(n_heads):
        group = h * n_kv_heads // n_heads
        for t in range(length):
            first = max(0, t + 1 - sizes.get("window", length))
            left = torch.stack([forget[:, s + 1 : t + 1, h].prod(1) for s in range(first, t + 1)], 1)
            scores = (k[:, first : t + 1, group] * q[:, t, None, h]).sum(-1) * head_dim**-0.5
            power = torch.exp(scores - scores.amax(1, keepdim=True)) * left
            share = power / power.sum(1, keepdim=True)
            o[:, t, h] = (share[..., None] * v[:, first : t + 1, group]).sum(1)
    if "normed_norm.weight" in weights:
        o = rms_norm(o, weights["normed_norm.weight"].reshape(n_heads, head_dim), eps)
    if sizes.get("output_gate"):
        o = o * sigmoid(linear(weights, "gate", x, n_heads, head_dim))
    return linear(weights, "y", o.flatten(2), d_model)
