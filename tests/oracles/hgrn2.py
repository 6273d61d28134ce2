"""HGRN2 from its recurrence (Qin et al. 2024, section 3.2), a loop over tokens; lower bounds summed over layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, sigmoid, silu
from tests.oracles.row import Row

SIZES = {"n_heads": 3, "expand_ratio": 16, "v_dim": 16}
ROWS = {
    "default": Row({"expand_ratio": 16}, SIZES),
    "one wide head": Row({"expand_ratio": 48}, {"n_heads": 1, "expand_ratio": 48, "v_dim": 48}, scale=2.0),
}


def lower_bounds(raw: Tensor) -> list[Tensor]:
    """The bound of each layer from the parameter `[layers, ...]`: none in the first, then the sum of shares."""
    powers = [torch.exp(row - raw.amax(0)) for row in raw]
    total = torch.stack(powers).sum(0)
    bounds = [torch.zeros_like(total)]
    for power in powers[1:]:
        bounds.append(bounds[-1] + power / total)
    return bounds


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = Diag(alpha_t) S_{t-1} + (1 - alpha_t) v_t^T, o_t = S_t^T q_t / sqrt(K).

    `sizes`: n_heads, expand_ratio, v_dim, layer, norm_eps, and under "model" the parameter of the bounds.
    """
    n_heads, expand_ratio, v_dim = sizes["n_heads"], sizes["expand_ratio"], sizes["v_dim"]
    batch, length, d_model = x.shape
    q = silu(linear(weights, "q", x, n_heads, expand_ratio)) * expand_ratio**-0.5
    v = linear(weights, "v", x, n_heads, v_dim)
    bound = lower_bounds(sizes["model"]["decay_lower_bounds"])[sizes["layer"]]
    alpha = bound + (1 - bound) * sigmoid(linear(weights, "decay", x, n_heads, expand_ratio))
    state = x.new_zeros(batch, n_heads, expand_ratio, v_dim)
    o = torch.zeros_like(v)
    for t in range(length):
        kept = alpha[:, t, :, :, None]
        state = kept * state + (1 - kept) * v[:, t, :, None, :]
        o[:, t] = (state * q[:, t, :, :, None]).sum(-2)
    normed = rms_norm(o.flatten(2), weights["y_norm.weight"].flatten(), sizes["norm_eps"])
    return linear(weights, "y", normed, d_model)
