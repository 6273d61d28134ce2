"""DeltaNet from its recurrence (Yang et al. 2024, section 2 and the published layer), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, short_conv, sigmoid, silu, unit
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "head_dim": 16, "v_dim": 16}),
    "negative eigenvalues and a gate": Row(
        {"n_heads": 3, "expand_v": 2, "conv": 3, "negative_eigenvalues": True, "use_gate": True},
        {"n_heads": 3, "head_dim": 16, "v_dim": 32, "span": 2, "gate": True},
    ),
    "keys that sum to one, beta 1": Row(
        {"n_heads": 4, "expand_k": 0.5, "qk_norm": "sum", "activation": "elu1", "learned_beta": False},
        {"n_heads": 4, "head_dim": 6, "v_dim": 12, "qk_norm": "sum", "activation": "elu1", "beta": 1},
    ),
    "keys that may be anything": Row(
        {"n_heads": 3, "activation": "tanh"},
        {"n_heads": 3, "head_dim": 16, "v_dim": 16, "activation": "tanh"},
    ),
}

ACTIVATIONS = {
    "silu": silu,
    "tanh": torch.tanh,
    "elu1": lambda u: torch.where(u > 0, u, torch.exp(u.clamp(max=0)) - 1) + 1,
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = S_{t-1} - beta_t k_t (k_t^T S_{t-1} - v_t^T), o_t = S_t^T q_t / sqrt(K).

    `sizes`: n_heads, head_dim, v_dim, norm_eps; where used qk_norm, activation, beta (all the same), span (the largest
    beta), gate.
    """
    n_heads, head_dim, v_dim = (sizes[key] for key in ("n_heads", "head_dim", "v_dim"))
    batch, length, d_model = x.shape
    activation = ACTIVATIONS[sizes.get("activation", "silu")]

    def key(name: str) -> Tensor:
        u = activation(short_conv(weights, f"{name}_conv", linear(weights, name, x, n_heads, head_dim)))
        return u / u.sum(-1, keepdim=True) if sizes.get("qk_norm") == "sum" else unit(u, 1e-6)

    q, k = key("q"), key("k")
    v = silu(short_conv(weights, "v_conv", linear(weights, "v", x, n_heads, v_dim)))
    if "beta" in sizes:
        beta = torch.full((batch, length, n_heads), float(sizes["beta"]), dtype=x.dtype)
    else:
        beta = sizes.get("span", 1) * sigmoid(linear(weights, "beta", x, n_heads))
    state = x.new_zeros(batch, n_heads, head_dim, v_dim)
    o = torch.zeros_like(v)
    for t in range(length):
        held = (k[:, t, :, :, None] * state).sum(-2)
        change = beta[:, t, :, None] * (v[:, t] - held)
        state = state + k[:, t, :, :, None] * change[:, :, None, :]
        o[:, t] = (q[:, t, :, :, None] * state).sum(-2) / head_dim**0.5
    o = rms_norm(o, weights["y_norm.weight"], sizes["norm_eps"])
    if "gate" in sizes:
        o = o * silu(linear(weights, "gate", x, n_heads, v_dim))
    return linear(weights, "y", o.flatten(2), d_model)
