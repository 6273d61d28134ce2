"""The linear recurrent unit from its recurrence (Orvieto et al. 2023, section 3), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, gated_readout
from tests.oracles.row import Row

ROWS = {
    "default": Row({}, {"activation": "full_glu"}),
    "linear readout": Row({"d_state": 20, "activation": "none"}, {"activation": "none"}),
    "a ring near 1": Row(
        {"r_min": 0.9, "r_max": 0.999, "max_phase": 0.314, "activation": "gelu"}, {"activation": "gelu"}
    ),
    "half gate": Row({"d_state": 32, "activation": "half_glu2"}, {"activation": "half_glu2"}),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: h_t = lambda h_{t-1} + gamma B x_t, y_t = Re(C h_t) + D x_t, in complex numbers.

    `sizes`: activation.
    """
    modulus, turn = torch.exp(-torch.exp(weights["nu_log"])), torch.exp(weights["theta_log"])
    factor = torch.complex(modulus * torch.cos(turn), modulus * torch.sin(turn))
    B = torch.complex(weights["B_re.weight"], weights["B_im.weight"])
    C = torch.complex(weights["C_re.weight"], weights["C_im.weight"])
    B = B * torch.exp(weights["gamma_log"])[:, None]
    state = torch.zeros(len(x), len(factor), dtype=B.dtype)
    o = torch.zeros_like(x)
    for t in range(x.shape[1]):
        state = factor * state + x[:, t].to(B.dtype) @ B.T
        o[:, t] = (state @ C.T).real + weights["D"] * x[:, t]
    return gated_readout(weights, o, sizes["activation"])
