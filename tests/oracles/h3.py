"""H3 from its equations (Fu et al. 2022, and the published layer's `step`), loops over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, short_conv
from tests.oracles.row import Row
from tests.oracles.s4d import state_space

ROWS = {
    "default": Row({"d_state": 8}, {"head_dim": 1}),
    "heads": Row({"d_state": 4, "head_dim": 4}, {"head_dim": 4}),
}


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`. `sizes`: head_dim.

    Channel c of q, k, v is entry c % head_dim of head c // head_dim; column d * heads + h of the output's matrix
    reads entry d of head h.
    """
    head_dim, d_model = sizes["head_dim"], x.shape[-1]
    shape = (d_model // head_dim, head_dim)
    q, k, v = (linear(weights, name, x, *shape) for name in ("q", "k0", "v"))
    k = short_conv(weights, "k_conv", k) + weights["D_shift"] * k
    state = state_space(weights, "h", k.unsqueeze(-1) * v.unsqueeze(-2))  # [B, T, heads, d1, d2]
    y = torch.einsum("bthij,bthi->btjh", state, q)
    return linear(weights, "y", y.flatten(2), d_model)
