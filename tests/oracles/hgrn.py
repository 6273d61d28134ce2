"""HGRN from its recurrence (Qin et al. 2023, section 3), a loop over tokens; lower bounds summed over layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.hgrn2 import lower_bounds
from tests.oracles.parts import Weights, linear, rms_norm, short_conv, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({}, {}),
    "complex, as in the paper": Row(
        {"numbers": "complex", "norm": "layer", "bias": True}, {"complex": True, "layer_norm": True}
    ),
    "convolutions, wide": Row({"expand": 2, "conv": 4}, {}),
    "complex with convolutions": Row({"numbers": "complex", "conv": 3}, {"complex": True}),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: h_t = alpha_t e^(i theta) h_{t-1} + (1 - alpha_t) c_t, its parts normed and gated.

    `sizes`: layer, norm_eps, "model" with the parameter of the bounds; complex and layer_norm where they are so.
    """
    d_inner = len(weights["v.weight"])

    def projected(name: str, convolved: str) -> Tensor:
        found = linear(weights, name, x, d_inner)
        return short_conv(weights, convolved, found) if f"{convolved}.weight" in weights else found

    bound = lower_bounds(sizes["model"]["lower_bounds"])[sizes["layer"]]
    alpha = bound + (1 - bound) * sigmoid(projected("f", "f_used_conv"))
    c = silu(projected("v", "c_conv"))
    turn = torch.zeros(d_inner, dtype=x.dtype)
    c_im = torch.zeros_like(c)
    if sizes.get("complex"):
        turn, c_im = weights["theta"], silu(projected("v_im", "c_im_conv"))
    re, im = torch.zeros_like(c[:, 0]), torch.zeros_like(c[:, 0])
    states = []
    for t in range(x.shape[1]):
        cos, sin = alpha[:, t] * torch.cos(turn), alpha[:, t] * torch.sin(turn)
        re, im = (
            cos * re - sin * im + (1 - alpha[:, t]) * c[:, t],
            sin * re + cos * im + (1 - alpha[:, t]) * c_im[:, t],
        )
        states.append(torch.cat([re, im], -1) if sizes.get("complex") else re)
    h = torch.stack(states, 1)
    weight = weights["y_norm.weight"]
    if sizes.get("layer_norm"):
        centred = h - h.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        h = centred / torch.sqrt(variance + sizes["norm_eps"]) * weight + weights["y_norm.bias"]
    else:
        h = rms_norm(h, weight, sizes["norm_eps"])
    return linear(weights, "y", h * silu(linear(weights, "gate", x, h.shape[-1])), x.shape[-1])
