"""The gated short convolution of LFM2 from its equations (Liquid AI 2025), the convolution as a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests.oracles.parts import Weights, linear, short_conv
from tests.oracles.row import Row

ROWS = {
    "default": Row(),
    "four taps and biases": Row({"width": 4, "bias": True}),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: B, C, u = W x; y = W_out (C * conv(B * u))."""
    B, C, u = linear(weights, "in_proj", x, 3, x.shape[-1]).unbind(2)
    return linear(weights, "y", C * short_conv(weights, "o_conv", B * u), x.shape[-1])
