"""xLSTM 7B's mLSTM layer (Beck et al. 2025), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.mlstm import memory
from tests.oracles.parts import Weights, layer_norm, linear, sigmoid
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "head_dim": 8, "v_dim": 16}),
    "soft caps that bite": Row(
        {"n_heads": 2, "expand_k": 1, "expand_v": 2, "gate_softcap": 1},
        {"n_heads": 2, "head_dim": 24, "v_dim": 48, "gate_softcap": 1},
        layers=(1,),
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`. `sizes`: n_heads, head_dim, v_dim, gate_softcap, norm_eps."""
    n_heads, head_dim, v_dim = sizes["n_heads"], sizes["head_dim"], sizes["v_dim"]
    cap = sizes.get("gate_softcap", 15)
    q, k = (linear(weights, name, x, n_heads, head_dim) for name in "qk")
    i, f = (cap * torch.tanh(linear(weights, name, x, n_heads) / cap) for name in ("igate", "fgate"))
    h = memory(q, k, linear(weights, "v", x, n_heads, v_dim), i, f)
    h = layer_norm(h, weights["y_norm.weight"].reshape(n_heads, v_dim), sizes["norm_eps"])
    gate = sigmoid(linear(weights, "gate", x, n_heads, v_dim))
    return linear(weights, "y", (gate * h).flatten(2), x.shape[-1])
