"""GaLiTe from its recurrence (Pramanik et al. 2023, section 3), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, sigmoid
from tests.oracles.row import Row

ROWS = {
    "positive features, no biases": Row(
        {"n_heads": 3, "head_dim": 4, "eta": 3, "activation": "elu1", "bias": False, "eps": 1e-3},
        {"n_heads": 3, "head_dim": 4, "eta": 3, "activation": "elu1", "eps": 1e-3},
    ),
    "published features": Row(
        {"n_heads": 2, "head_dim": 6, "eta": 2}, {"n_heads": 2, "head_dim": 6, "eta": 2}
    ),
}

ACTIVATIONS = {
    "relu": lambda u: u.clamp(min=0),
    "elu1": lambda u: torch.where(u > 0, u, torch.exp(u.clamp(max=0)) - 1) + 1,
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: C = (1 - gamma)(1 - beta)^T * C + (gamma * psi_k)(beta * v)^T, s = (1 - gamma) * s +
    gamma * psi_k, o = C^T psi_q / (s^T psi_q + eps).

    `sizes`: n_heads, head_dim, eta; where used activation, eps.
    """
    n_heads, head_dim, eta = (sizes[key] for key in ("n_heads", "head_dim", "eta"))
    batch, length, d_model = x.shape
    phi = ACTIVATIONS[sizes.get("activation", "relu")]

    def each(name: str, width: int) -> Tensor:
        return linear(weights, name, x, n_heads, width)

    def products(a: Tensor, p: Tensor) -> Tensor:
        return (a[..., :, None] * p[..., None, :]).flatten(-2)

    psi_k = products(phi(each("k", head_dim)), phi(each("p_k", eta)))
    psi_q = products(phi(each("q", head_dim)), phi(each("p_q", eta)))
    gamma = products(sigmoid(each("g", head_dim)), sigmoid(each("p_g", eta)))
    beta, v = sigmoid(each("b", head_dim)), each("v", head_dim)
    state = x.new_zeros(batch, n_heads, head_dim * eta, head_dim)
    total = x.new_zeros(batch, n_heads, head_dim * eta)
    o = torch.zeros_like(v)
    for t in range(length):
        write = gamma[:, t] * psi_k[:, t]
        kept = (1 - gamma[:, t])[..., :, None] * (1 - beta[:, t])[..., None, :]
        state = kept * state + write[..., :, None] * (beta[:, t] * v[:, t])[..., None, :]
        total = (1 - gamma[:, t]) * total + write
        mass = (total * psi_q[:, t]).sum(-1, keepdim=True) + sizes.get("eps", 1e-5)
        o[:, t] = (state * psi_q[:, t, :, :, None]).sum(-2) / mass
    return linear(weights, "y", o.flatten(2), d_model)
