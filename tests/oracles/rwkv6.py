"""RWKV-6 from its recurrence (Peng et al. 2024, section 4), a loop over tokens; and its channel mixing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, shifted, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({"head_dim": 16}, {"n_heads": 3, "head_dim": 16}),
    "other ranks": Row(
        {"head_dim": 12, "mix_rank": 5, "decay_rank": 7, "norm_eps": 1e-3},
        {"n_heads": 4, "head_dim": 12, "head_eps": 1e-3},
    ),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: o_t = r_t (S_{t-1} + diag(u) k_t^T v_t), S_t = diag(exp(-exp(d_t))) S_{t-1} + k_t^T v_t.

    `sizes`: n_heads, head_dim, and head_eps, the epsilon of the norm of each head.
    """
    heads = sizes["n_heads"], sizes["head_dim"]
    batch, length, d_model = x.shape
    past = shifted(x) - x
    first = x + past * weights["mix_x"]
    low = torch.tanh(first @ weights["low.weight"].T).reshape(batch, length, 5, -1)
    mixed = {}
    for place, letter in enumerate("wkvrg"):
        share = low[:, :, place] @ weights["shares.weight"][place].T
        mixed[letter] = x + past * (weights[f"mix_{letter}"] + share)
    r, k, v = (linear(weights, letter, mixed[letter], *heads) for letter in "rkv")
    gate = silu(linear(weights, "gate", mixed["g"], d_model))
    low = torch.tanh(mixed["w"] @ weights["w_low.weight"].T)
    d = weights["w0"] + linear(weights, "w", low, *heads)
    kept = torch.exp(-torch.exp(d))
    state = x.new_zeros(batch, *heads, heads[1])
    o = torch.zeros_like(v)
    for t in range(length):
        write = k[:, t, :, :, None] * v[:, t, :, None, :]
        o[:, t] = (r[:, t, :, :, None] * (state + weights["u"][:, :, None] * write)).sum(-2)
        state = kept[:, t, :, :, None] * state + write
    centred = o - o.mean(-1, keepdim=True)
    normed = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + sizes.get("head_eps", 64e-5))
    normed = normed * weights["o_norm.weight"] + weights["o_norm.bias"]
    return linear(weights, "y", normed.flatten(2) * gate, d_model)


def channel_mix(weights: Weights, x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: sigmoid(W_r x_r) * W_v relu(W_k x_k)^2."""
    past = shifted(x) - x
    xk, xr = (x + past * weights[f"mix_{letter}"] for letter in "kr")
    hidden = torch.clamp(xk @ weights["up.weight"].T, min=0) ** 2
    return sigmoid(xr @ weights["r.weight"].T) * (hidden @ weights["y.weight"].T)
