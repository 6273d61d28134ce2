"""Gated slot attention from its slots (Zhang et al. 2024, section 3.1), a loop over tokens, heads and slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row(
        {"n_heads": 4, "n_kv_heads": 2, "n_slots": 8},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "v_dim": 12, "n_slots": 8, "tau": 8},
    ),
    "other sizes and activation": Row(
        {"n_heads": 3, "expand_k": "1/2", "expand_v": 2, "n_slots": 5, "tau": 2, "activation": "relu"},
        {
            "n_heads": 3,
            "n_kv_heads": 3,
            "head_dim": 8,
            "v_dim": 32,
            "n_slots": 5,
            "tau": 2,
            "activation": "relu",
        },
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: K~ and V~ forget alpha_t and take in (1 - alpha_t) of k_t and v_t, slot by slot.

    `sizes`: n_heads, n_kv_heads, head_dim, v_dim, n_slots, tau, norm_eps; and where used activation.
    """
    n_heads, n_kv_heads, n_slots = sizes["n_heads"], sizes["n_kv_heads"], sizes["n_slots"]
    head_dim, v_dim = sizes["head_dim"], sizes["v_dim"]
    batch, length, d_model = x.shape
    act = (lambda u: u.clamp(min=0)) if sizes.get("activation") == "relu" else silu
    q = act(linear(weights, "q", x, n_heads, head_dim))
    k = act(linear(weights, "k", x, n_kv_heads, head_dim))
    v = silu(linear(weights, "v", x, n_kv_heads, v_dim))
    alpha = sigmoid(linear(weights, "log_alpha", x, n_kv_heads, n_slots)) ** (1 / sizes["tau"])
    o = x.new_zeros(batch, length, n_heads, v_dim)
    for h in range(n_heads):
        group = h * n_kv_heads // n_heads
        keys = x.new_zeros(batch, n_slots, head_dim)
        values = x.new_zeros(batch, n_slots, v_dim)
        for t in range(length):
            kept = alpha[:, t, group, :, None]
            keys = kept * keys + (1 - kept) * k[:, t, group, None]
            values = kept * values + (1 - kept) * v[:, t, group, None]
            scores = (keys * q[:, t, h, None]).sum(-1)
            p = torch.exp(scores - scores.amax(-1, keepdim=True))
            p = p / p.sum(-1, keepdim=True)
            o[:, t, h] = (p[..., None] * values).sum(1)
    normed = rms_norm(silu(o).flatten(2), weights["y_norm.weight"].flatten(), sizes["norm_eps"])
    return linear(weights, "y", normed, d_model)
