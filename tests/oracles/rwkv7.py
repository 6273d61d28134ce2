"""RWKV-7 from its recurrence (Peng et al. 2025, section 4), a loop over tokens; and its channel mixing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, shifted, sigmoid, unit
from tests.oracles.row import Row

ROWS = {
    "default": Row(
        {"head_dim": 16},
        {
            "n_heads": 3,
            "head_dim": 16,
            "decay_rank": 32,
            "a_rank": 32,
            "value_rank": 32,
            "gate_rank": 32,
        },
    ),
}


class Streams(NamedTuple):
    """What enters the recurrence, each `[B, T, H, D]`; `w` is the decay itself, between 0.545 and 1."""

    r: Tensor
    w: Tensor
    k: Tensor
    v: Tensor
    kappa: Tensor
    a: Tensor


def mixed(weights: Weights, x: Tensor, letter: str) -> Tensor:
    """x_t + (x_{t-1} - x_t) mu: the token shift before one projection."""
    return x + (shifted(x) - x) * weights[f"mix_{letter}"]


def own_value(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """The value `[B, T, H, D]` that the first such layer hands to the later ones."""
    return linear(weights, "v0", mixed(weights, x, "v"), sizes["n_heads"], sizes["head_dim"])


def streams(weights: Weights, sizes: Mapping[str, Any], x: Tensor, first: Tensor | None) -> Streams:
    """The projections of one layer; `first` is the first layer's value, None in the first layer itself."""
    heads = sizes["n_heads"], sizes["head_dim"]
    r = linear(weights, "r", mixed(weights, x, "r"), *heads)
    low = torch.tanh(linear(weights, "w_low", mixed(weights, x, "w"), sizes["decay_rank"]))
    w = torch.exp(-math.exp(-0.5) * sigmoid(linear(weights, "w", low, *heads)))
    k = linear(weights, "k0", mixed(weights, x, "k"), *heads)
    v = own_value(weights, sizes, x)
    if first is not None:
        low = linear(weights, "mu_low", mixed(weights, x, "v"), sizes["value_rank"])
        v = v + (first - v) * sigmoid(linear(weights, "mu", low, *heads))
    low = linear(weights, "a_low", mixed(weights, x, "a"), sizes["a_rank"])
    a = sigmoid(linear(weights, "a", low, *heads))
    kappa = unit(k * weights["k_k"], 1e-12)
    k = k * (1 + (a - 1) * weights["k_a"])
    return Streams(r, w, k, v, kappa, a)


def output(weights: Weights, sizes: Mapping[str, Any], x: Tensor, o: Tensor, s: Streams) -> Tensor:
    """The norm of each head, the bonus of the token itself, the gate and the last projection."""
    heads = sizes["n_heads"], sizes["head_dim"]
    centred = o - o.mean(-1, keepdim=True)
    normed = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + sizes["head_dim"] * 1e-5)
    normed = normed * weights["o_norm.weight"] + weights["o_norm.bias"]
    bonus = (s.r * s.k * weights["r_k"]).sum(-1, keepdim=True) * s.v
    low = sigmoid(linear(weights, "g_low", mixed(weights, x, "g"), sizes["gate_rank"]))
    gate = linear(weights, "gate", low, *heads)
    return linear(weights, "y", ((normed + bonus) * gate).flatten(2), x.shape[-1])


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor, first: Tensor | None = None) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = S_{t-1} (Diag(w) - kappa (a kappa)^T) + v k^T, o_t = S_t r_t.

    The paper's state is `[V, K]`, one row a value channel, and is kept so here. `sizes`: n_heads, head_dim,
    decay_rank, a_rank, value_rank, gate_rank. `first`: see `streams`.
    """
    if first is None and sizes.get("layer"):
        first_weights, first_x = sizes["first"]
        first = own_value(first_weights, sizes, first_x)
    s = streams(weights, sizes, x, first)
    batch, length, n_heads, head_dim = s.r.shape
    state = x.new_zeros(batch, n_heads, head_dim, head_dim)
    o = torch.zeros_like(s.v)
    for t in range(length):
        transition = (
            torch.diag_embed(s.w[:, t]) - s.kappa[:, t, :, :, None] * (s.a * s.kappa)[:, t, :, None, :]
        )
        state = state @ transition + s.v[:, t, :, :, None] * s.k[:, t, :, None, :]
        o[:, t] = (state * s.r[:, t, :, None, :]).sum(-1)
    return output(weights, sizes, x, o, s)


def forward_operator(
    weights: Weights, sizes: Mapping[str, Any], x: Tensor, first: Tensor | None = None
) -> Tensor:
    """The same without a state: o_t = sum_s v_s (k_s^T A_{s+1} ... A_t r_t)."""
    s = streams(weights, sizes, x, first)
    length = x.shape[1]
    o = torch.zeros_like(s.v)
    for t in range(length):
        read = s.r[:, t]  # A_{s+1} ... A_t r_t, from the right
        for source in range(t, -1, -1):
            o[:, t] += (s.k[:, source] * read).sum(-1, keepdim=True) * s.v[:, source]
            kappa, a = s.kappa[:, source], s.a[:, source]
            read = s.w[:, source] * read - kappa * (a * kappa * read).sum(-1, keepdim=True)
    return output(weights, sizes, x, o, s)


def channel_mix(weights: Weights, x: Tensor) -> Tensor:
    """`x [B, T, d_model] -> [B, T, d_model]`: W_v relu(W_k (x_t + (x_{t-1} - x_t) mu))^2."""
    hidden = torch.clamp(mixed(weights, x, "k") @ weights["up.weight"].T, min=0) ** 2
    return hidden @ weights["y.weight"].T
