"""The library's functions of one value from their definitions, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.oracles.parts import sigmoid, silu, softplus

Weights = Mapping[str, Tensor]  # by the names of a function's own parameters


def golu(weights: Weights, u: Tensor) -> Tensor:
    """x exp(-exp(-x)); the double exponential is 0 in float64 below -7, long before exp(-x) overflows."""
    return u * torch.exp(-torch.exp(-u.clamp(min=-100)))


def gelu(weights: Weights, u: Tensor) -> Tensor:
    """x times the normal distribution function."""
    return u * 0.5 * torch.erfc(-u / math.sqrt(2))


def swish(weights: Weights, u: Tensor) -> Tensor:
    """x sigmoid(slope x)."""
    return u * sigmoid(weights["slope"] * u)


def mish(weights: Weights, u: Tensor) -> Tensor:
    """x tanh(log(1 + exp(x)))."""
    return u * torch.tanh(softplus(u))


def scaled_elu(weights: Weights, u: Tensor) -> Tensor:
    """lambda x above zero, lambda alpha (exp(x) - 1) below, with the paper's fixed point."""
    alpha, scale = 1.6732632423543772848, 1.0507009873554804934
    return scale * torch.where(u > 0, u, alpha * torch.expm1(u.clamp(max=0)))


def xielu(weights: Weights, u: Tensor) -> Tensor:
    """alpha_p x^2 + x / 2 above zero, alpha_n (exp(x) - 1 - x) + x / 2 below."""
    above, below = softplus(weights["alpha_p"]), 0.5 + softplus(weights["alpha_n"])
    bounded = u.clamp(max=-1e-6)
    return torch.where(u > 0, above * u * u, below * (torch.expm1(bounded) - u)) + 0.5 * u


FUNCTIONS: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "silu": lambda weights, u: silu(u),
    "gelu": gelu,
    "golu": golu,
    "relu2": lambda weights, u: u.clamp(min=0) ** 2,
    "quick_gelu": lambda weights, u: u * sigmoid(1.702 * u),
    "swish": swish,
    "mish": mish,
    "hard_silu": lambda weights, u: u * ((u + 3).clamp(0, 6) / 6),
    "leaky_relu": lambda weights, u: torch.where(u > 0, u, 0.01 * u),
    "scaled_elu": scaled_elu,
    "xielu": xielu,
    "elu1": lambda weights, u: torch.where(u > 0, u + 1, torch.exp(u.clamp(max=0))),
    "positive_linear": lambda weights, u: torch.where(u >= 0, u + 0.5, sigmoid(u)),
    "logsigmoid_decay": lambda weights, u: -softplus(-u) / 16,
}
