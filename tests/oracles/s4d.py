"""S4D from its recurrence in complex numbers (Gu et al. 2022, arXiv 2206.11893, and the published minimal layer)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, sigmoid
from tests.oracles.row import Row

ROWS = {
    "default": Row({"d_state": 8}),
    "inverse": Row({"d_state": 4, "start": "inv"}),
    "real": Row({"d_state": 4, "start": "real"}),
}


def state_space(weights: Weights, name: str, u: Tensor) -> Tensor:
    """`u [B, T, channels, *inner]`: x' = A x + u discretised by ZOH, y = 2 Re(C x) + D u, for each channel.

    (exp(dt A) - 1) / A by its series where dt A is small, so that float32 can tell it.
    """
    inner = (1,) * (u.dim() - 3)
    dt = torch.exp(weights[f"{name}_log_dt"]).unsqueeze(-1)
    A = torch.complex(-torch.exp(weights[f"{name}_log_A_real"]), weights[f"{name}_A_imag"])
    C = torch.view_as_complex(weights[f"{name}_C"].contiguous())
    z = dt * A
    series = sum(z ** (k - 1) / math.factorial(k) for k in range(1, 9))
    B = torch.where(z.abs() < 0.05, dt * series, (torch.exp(z) - 1) / A)
    shape = (*dt.shape[:-1], *inner, -1)
    kept, B, C = torch.exp(z).view(shape), B.view(shape), C.view(shape)
    D = weights[f"{name}_D"].view(*dt.shape[:-1], *inner)
    x = torch.zeros(*u.shape[:1], *u.shape[2:], A.shape[-1], dtype=A.dtype)
    y = torch.zeros_like(u)
    for t in range(u.shape[1]):
        x = kept * x + B * u[:, t, ..., None]
        y[:, t] = 2 * (C * x).sum(-1).real + D * u[:, t]
    return y


def gelu(x: Tensor) -> Tensor:
    """x Phi(x)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: GLU(W GELU(SSM(x)))."""
    a, b = linear(weights, "out", gelu(state_space(weights, "o", x)), 2, -1).unbind(2)
    return a * sigmoid(b)
