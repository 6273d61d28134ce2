"""S5 from its recurrence (Smith et al. 2022, section 3 and the published code), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, gated_readout
from tests.oracles.row import Row

_SMALL = {"d_state": 32, "n_blocks": 2}
ROWS = {
    "default": Row(_SMALL, {"activation": "half_glu1"}),
    "bilinear": Row(
        {**_SMALL, "discretization": "bilinear", "activation": "full_glu"},
        {"bilinear": True, "activation": "full_glu"},
    ),
    "linear spectrum": Row(
        {"d_state": 24, "n_blocks": 3, "spectrum": "linear", "dt_max": 1, "activation": "half_glu2"},
        {"activation": "half_glu2"},
    ),
    "one block": Row(
        {"d_state": 16, "n_blocks": 1, "activation": "gelu", "discretization": "bilinear", "dt_min": 0.1},
        {"bilinear": True, "activation": "gelu"},
    ),
}


def discretized(weights: Weights, bilinear: bool = False) -> tuple[Tensor, Tensor]:
    """Lambda_bar `[P]` and B_bar `[P, D]`, complex."""
    Lambda = torch.complex(weights["Lambda_re"].clamp(max=-1e-4), weights["Lambda_im"])
    B = torch.complex(weights["B_re.weight"], weights["B_im.weight"])
    step = torch.exp(weights["log_step"])
    if bilinear:
        inverse = 1 / (1 - step / 2 * Lambda)
        return inverse * (1 + step / 2 * Lambda), (inverse * step)[:, None] * B
    factor = torch.exp(Lambda * step)
    return factor, ((factor - 1) / Lambda)[:, None] * B


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: h_t = Lambda_bar h_{t-1} + B_bar x_t, y_t = 2 Re(C h_t) + D x_t, then the gate.

    `sizes`: activation, and bilinear where it is not the zero-order hold.
    """
    factor, B = discretized(weights, sizes.get("bilinear", False))
    C = torch.complex(weights["C_re.weight"], weights["C_im.weight"])
    state = torch.zeros(len(x), len(factor), dtype=factor.dtype)
    o = torch.zeros_like(x)
    for t in range(x.shape[1]):
        state = factor * state + x[:, t].to(factor.dtype) @ B.T
        o[:, t] = 2 * (state @ C.T).real + weights["D"] * x[:, t]
    return gated_readout(weights, o, sizes["activation"])
