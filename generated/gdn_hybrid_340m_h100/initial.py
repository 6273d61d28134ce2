"""Initial weights: draws and constants of the shape of a weight, and what inits are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """Uniform between `low` and `high`."""
    return torch.empty_like(like).uniform_(low, high)


def log_uniform(like: Tensor, low: float, high: float) -> Tensor:
    """Values whose logarithm is uniform between those of `low` and `high`."""
    return torch.empty_like(like).uniform_(math.log(low), math.log(high)).exp_()


def normal(like: Tensor, mean: float, deviation: float) -> Tensor:
    """Normal with this mean and standard deviation."""
    return torch.empty_like(like).normal_(mean, deviation)


def truncated_normal(like: Tensor, mean: float, deviation: float) -> Tensor:
    """Normal, redrawn beyond two standard deviations."""
    return nn.init.trunc_normal_(
        torch.empty_like(like), mean, deviation, mean - 2 * deviation, mean + 2 * deviation
    )


def orthogonal(like: Tensor, gain: float = 1.0) -> Tensor:
    """A random matrix with orthonormal rows or columns, times `gain`. Saxe et al. 2013."""
    return nn.init.orthogonal_(torch.empty_like(like), gain)


def orthogonal_normal(like: Tensor) -> Tensor:
    """`[..., rows, n]` rows that are orthogonal in blocks of n, each as long as a normal one. Yu et al. 2016."""
    rows, n = like.shape[-2:]
    shape = (*like.shape[:-2], -(-rows // n), n, n)
    q, r = torch.linalg.qr(torch.randn(shape, device=like.device))
    # Q alone is not spread evenly over all directions: its signs are those of the decomposition.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    directions = q.flatten(-3, -2)[..., :rows, :]
    lengths = torch.randn(like.shape, device=like.device).norm(dim=-1, keepdim=True)
    found: Tensor = (directions * lengths).to(like.dtype)
    return found


def eye(like: Tensor) -> Tensor:
    """The identity in the last two axes."""
    return torch.eye(like.shape[-2], like.shape[-1], dtype=like.dtype, device=like.device).expand_as(like)


def zeros(like: Tensor) -> Tensor:
    """0 everywhere."""
    return torch.zeros_like(like)


def ones(like: Tensor) -> Tensor:
    """1 everywhere."""
    return torch.ones_like(like)


def inverse_softplus(x: Tensor | float) -> Tensor:
    """y with softplus(y) = x, for x above 0."""
    x = torch.as_tensor(x)
    return x + torch.log(-torch.expm1(-x))
