"""Normalisations that own weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .norms import layernorm, rmsnorm


class RMSNorm(nn.Module):
    """`rmsnorm` with a weight of `shape`, the mean over the last `dims` axes. Zhang, Sennrich 2019."""

    def __init__(self, shape: tuple[int, ...], eps: float, dims: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.eps = eps
        self.dims = tuple(range(-dims, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., *shape] or with fewer trailing axes of it -> the same."""
        return rmsnorm(x, self.weight, eps=self.eps, dims=self.dims)


class LayerNorm(nn.Module):
    """`layernorm` with a weight and, unless `bias` is false, a bias of `shape`. Ba, Kiros, Hinton 2016."""

    def __init__(self, shape: tuple[int, ...], eps: float, dims: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None
        self.eps = eps
        self.dims = tuple(range(-dims, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., *shape] or with fewer trailing axes of it -> the same."""
        return layernorm(x, self.weight, self.bias, eps=self.eps, dims=self.dims)
