"""RWKV-5 from its recurrence (Peng et al. 2024, section 4, and the code of version 5.2), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, shifted, silu
from tests.oracles.row import Row

ROWS = {"default": Row({"head_dim": 16}, {"n_heads": 3, "head_dim": 16})}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: o_t = r_t (S_{t-1} + diag(u) k_t^T v_t), S_t = diag(exp(-exp(w))) S_{t-1} + k_t^T v_t.

    `sizes`: n_heads, head_dim.
    """
    heads = sizes["n_heads"], sizes["head_dim"]
    batch, length, d_model = x.shape
    mixed = {
        letter: x * weights[f"mix_{letter}"] + shifted(x) * (1 - weights[f"mix_{letter}"])
        for letter in "kvrg"
    }
    r, k, v = (linear(weights, letter, mixed[letter], *heads) for letter in "rkv")
    gate = silu(linear(weights, "gate", mixed["g"], d_model))
    kept = torch.exp(-torch.exp(weights["w"]))[:, :, None]
    state = x.new_zeros(batch, *heads, heads[1])
    o = torch.zeros_like(v)
    for t in range(length):
        write = k[:, t, :, :, None] * v[:, t, :, None, :]
        o[:, t] = (r[:, t, :, :, None] * (state + weights["u"][:, :, None] * write)).sum(-2)
        state = kept * state + write
    scaled = o / 8  # the code's head_size_divisor; its group norm has an epsilon of 1e-5
    centred = scaled - scaled.mean(-1, keepdim=True)
    normed = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    normed = normed * weights["o_norm.weight"] + weights["o_norm.bias"]
    return linear(weights, "y", normed.flatten(2) * gate, d_model)
