"""sLSTM from its recurrence (Beck et al. 2024, section 2.2), a loop over tokens, without the running maximum.

What is divided by exp(m) cancels in c / n, so the gates can stay exponentials.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, layer_norm, short_conv, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "conv": True}),
    "without a convolution": Row({"n_heads": 2, "conv": 0}, {"n_heads": 2, "conv": False}),
    "one head": Row({"n_heads": 1, "conv": 2}, {"n_heads": 1, "conv": True}, layers=(1,)),
}


def headwise(weights: Weights, name: str, x: Tensor, n_heads: int) -> Tensor:
    """`x [B, T, d_model] -> [B, T, H, K]`, each head from its own channels."""
    own = x.reshape(*x.shape[:2], n_heads, -1)
    y = (weights[f"{name}.weight"] @ own[..., None])[..., 0]
    return y + weights[f"{name}.bias"].reshape(n_heads, -1) if f"{name}.bias" in weights else y


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`. `sizes`: n_heads, conv, norm_eps."""
    n_heads = sizes["n_heads"]
    u = silu(short_conv(weights, "u_conv", x)) if sizes["conv"] else x
    inputs = [
        headwise(weights, name, source, n_heads)
        for name, source in (("igate", u), ("fgate", u), ("zgate", x), ("ogate", x))
    ]
    matrix = weights["cell.recurrent.weight"]  # [H, 4 K, K]
    h = torch.zeros_like(inputs[0][:, 0])
    c, n = h, h
    rows = []
    for t in range(x.shape[1]):
        turned = (matrix @ h[..., None])[..., 0].chunk(4, -1)
        i, f, z, o = (part[:, t] + own for part, own in zip(inputs, turned, strict=True))
        write, keep = torch.exp(i), sigmoid(f)
        c = keep * c + write * torch.tanh(z)
        n = keep * n + write
        h = sigmoid(o) * c / n
        rows.append(h)
    normed = layer_norm(torch.stack(rows, 1), weights["y_norm.weight"], sizes["norm_eps"])
    return normed.flatten(2)
