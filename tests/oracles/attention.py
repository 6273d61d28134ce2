"""Softmax attention from its definition, one query and one head at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, rotate, sigmoid
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 4}, {"n_heads": 4, "n_kv_heads": 4, "head_dim": 12}),
    "rotated, windowed, gated": Row(
        {
            "n_heads": 4,
            "n_kv_heads": 2,
            "rope": {"theta": 10000},
            "fraction": "1/3",
            "window": 48,
            "qk_norm": "head",
            "output_gate": "element",
        },
        {
            "n_heads": 4,
            "n_kv_heads": 2,
            "head_dim": 12,
            "theta": 10000.0,
            "fraction": 1 / 3,
            "window": 48,
            "qk_norm": "head",
            "output_gate": "element",
        },
    ),
}


def normed(weights: Weights, name: str, x: Tensor, kind: str, eps: float) -> Tensor:
    """The norm of queries or keys `[B, T, H, D]`: per head, or over the whole projection."""
    if kind == "head":
        return rms_norm(x, weights[f"{name}.weight"], eps)
    if kind == "projection":
        return rms_norm(x.flatten(2), weights[f"{name}.weight"].flatten(), eps).reshape(x.shape)
    return x


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x [B, T, d_model] -> [B, T, d_model]` (Vaswani et al. 2017; query head h reads group floor(h Hk / H)).

    `sizes`: n_heads, n_kv_heads, head_dim, norm_eps; and where used theta, fraction, window, qk_norm,
    softcap, output_gate.
    """
    n_heads, n_kv_heads, head_dim = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    eps, kind = sizes.get("norm_eps", 0.0), sizes.get("qk_norm", "none")
    batch, length, d_model = x.shape
    q = normed(weights, "q_norm", linear(weights, "q", x, n_heads, head_dim), kind, eps)
    k = normed(weights, "k_norm", linear(weights, "k", x, n_kv_heads, head_dim), kind, eps)
    v = linear(weights, "v", x, n_kv_heads, head_dim)
    if sizes.get("theta") is not None:
        fraction = sizes.get("fraction", 1.0)
        q = torch.stack([rotate(q[:, t], t, sizes["theta"], fraction) for t in range(length)], 1)
        k = torch.stack([rotate(k[:, t], t, sizes["theta"], fraction) for t in range(length)], 1)
    o = torch.zeros_like(q)
    for h in range(n_heads):
        group = h * n_kv_heads // n_heads
        for t in range(length):
            first = 0 if sizes.get("window") is None else max(0, t - sizes["window"] + 1)
            keys, values = k[:, first : t + 1, group], v[:, first : t + 1, group]
            scores = (keys @ q[:, t, h, :, None]).squeeze(-1) / math.sqrt(head_dim)
            if sizes.get("softcap") is not None:
                scores = sizes["softcap"] * torch.tanh(scores / sizes["softcap"])
            weight = torch.exp(scores - scores.amax(-1, keepdim=True))
            weight = weight / weight.sum(-1, keepdim=True)
            o[:, t, h] = (weight[:, None] @ values).squeeze(1)
    if sizes.get("output_gate") == "element":
        o = o * sigmoid(linear(weights, "gate", x, n_heads, head_dim))
    if sizes.get("output_gate") == "head":
        o = o * sigmoid(linear(weights, "head_gate", x, n_heads))[..., None]
    return linear(weights, "y", o.flatten(2), d_model)
