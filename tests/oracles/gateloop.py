"""GateLoop from its recurrence (Katsch 2023, maximal heads), a loop over tokens in complex numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({}, {}),
    "wide, with biases": Row(
        {"expand": 2, "bias": True, "transition_slope": 0.5, "output_gate": False}, {"output_gate": False}
    ),
    "real": Row({"numbers": "real"}, {"real": True}),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: h_t = sigmoid(gamma_t) e^(i theta_t) h_{t-1} + k_t v_t, o_t = Re(q_t h_t), gated.

    `sizes`: output_gate (True unless said), real.
    """
    q, k, v, gamma = (linear(weights, name, x, len(weights["q.weight"])) for name in ("q", "k", "v", "gamma"))
    theta = torch.zeros_like(q) if sizes.get("real") else linear(weights, "theta", x, q.shape[-1])
    factor = torch.polar(sigmoid(gamma), theta)
    state = torch.zeros_like(factor[:, 0])
    o = torch.zeros_like(q)
    for t in range(x.shape[1]):
        state = factor[:, t] * state + k[:, t] * v[:, t]
        o[:, t] = (q[:, t] * state).real
    if sizes.get("output_gate", True):
        o = o * silu(linear(weights, "gate", x, q.shape[-1]))
    return linear(weights, "y", o, x.shape[-1])
