"""The gated convolution of Based from its published layer (Arora et al. 2024), as a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests.oracles.parts import Weights, linear, short_conv, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({"expand": 2}),
    "bias of the convolution only": Row({"expand": 4, "width": 5, "bias": False, "conv_bias": True}),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: u, g = W x; y = W_out (silu(conv(u)) * g)."""
    u, g = linear(weights, "in_proj", x, 2, -1).unbind(2)
    return linear(weights, "y", silu(short_conv(weights, "o_conv", u)) * g, x.shape[-1])
