"""Minimal LSTM from its recurrence (Feng et al. 2024, section 3 and appendix B), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, short_conv, sigmoid
from tests.oracles.row import Row

ROWS = {
    "default": Row({}, {}),
    "wide, convolved": Row({"expand": 1.5, "conv": 4, "bias": True}, {}),
    "vanilla": Row({"positive": False, "output": True}, {"positive": False}),
    "from a half": Row({"start": 0.5, "expand": 2}, {"start": 0.5}),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: h_t = f / (f + i) h_{t-1} + i / (f + i) c_t.

    `sizes`: positive (True unless said), start (0 unless said).
    """
    width = len(weights["candidate.weight"])
    u = short_conv(weights, "u_conv", x) if "u_conv.weight" in weights else x
    f, i = sigmoid(linear(weights, "forget", u, width)), sigmoid(linear(weights, "write", u, width))
    kept, written = f / (f + i), i / (f + i)
    c = linear(weights, "candidate", u, width)
    if sizes.get("positive", True):
        c = torch.where(c >= 0, c + 0.5, sigmoid(c))
    h = torch.full_like(c[:, 0], sizes.get("start", 0))
    states = []
    for t in range(x.shape[1]):
        h = kept[:, t] * h + written[:, t] * c[:, t]
        states.append(h)
    o = torch.stack(states, 1)
    return linear(weights, "y", o, x.shape[-1]) if "y.weight" in weights else o
