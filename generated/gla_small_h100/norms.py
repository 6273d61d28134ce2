"""Normalisations with float32 statistics and the dtype of their input."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def rmsnorm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float,
    dims: tuple[int, ...] = (-1,),
    zero_centred: bool = False,
) -> Tensor:
    """`x / sqrt(mean(x ** 2) + eps) * weight`, the mean over `dims` (negative). Zhang, Sennrich 2019.

    `weight` has the shape of trailing axes of `x`, more or fewer than the mean runs over; `zero_centred` adds
    1 to it.
    """
    if _trailing(x, weight, dims) and not zero_centred:
        if x.dtype == torch.float32 and x.is_cpu and not torch.is_grad_enabled():
            return _rmsnorm_in_two_passes(x, weight, eps, dims)
        return F.rms_norm(x, [x.shape[dim] for dim in sorted(dims)], weight, eps).to(x.dtype)
    wide = _wide(x)
    normed = wide * torch.rsqrt(wide.square().mean(dims, keepdim=True) + eps)
    if weight is not None:
        weight = weight.to(wide.dtype)
        normed = normed * (1 + weight if zero_centred else weight)
    return normed.to(x.dtype)


def layernorm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    dims: tuple[int, ...] = (-1,),
) -> Tensor:
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, statistics over `dims`. Ba, Kiros, Hinton 2016.

    `weight` and `bias` have the shape of trailing axes of `x`, more or fewer than the statistics run over.
    """
    if _trailing(x, weight, dims) and _trailing(x, bias, dims):
        return F.layer_norm(x, [x.shape[dim] for dim in sorted(dims)], weight, bias, eps).to(x.dtype)
    wide = _wide(x)
    centred = wide - wide.mean(dims, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight.to(wide.dtype)
    if bias is not None:
        normed = normed + bias.to(wide.dtype)
    return normed.to(x.dtype)


def l2norm(x: Tensor, *, eps: float = 1e-6, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """`x / sqrt(sum(x ** 2) + eps)`, the sum over `dims`."""
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().sum(dims, keepdim=True) + eps)).to(x.dtype)


def _rmsnorm_in_two_passes(x: Tensor, weight: Tensor | None, eps: float, dims: tuple[int, ...]) -> Tensor:
    """On a CPU torch's own goes over the whole input six times, with a buffer each; this is for inference."""
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    entries = math.prod([x.shape[dim] for dim in dims])
    normed = x * torch.addcmul(x.new_full((), eps), length, length, value=1 / entries).rsqrt_()
    return normed if weight is None else normed.mul_(weight)


def _trailing(x: Tensor, weight: Tensor | None, dims: tuple[int, ...]) -> bool:
    """Whether torch's own norms cover the case: statistics and weight over the same last axes, one dtype."""
    if tuple(sorted(dims)) != tuple(range(-len(dims), 0)):
        return False
    return weight is None or (weight.dim() == len(dims) and weight.dtype == x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
