"""Products of two values summed over an axis, and features whose inner products are squared inner products."""

from __future__ import annotations

import torch
from torch import Tensor


def contract(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """`torch.einsum` of two tensors in the wider of their dtypes."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return torch.einsum(equation, a.to(dtype), b.to(dtype))


def tensor_square(x: Tensor) -> Tensor:
    """`[..., n]` -> `[..., n (n + 1) / 2]` with `<ts(a), ts(b)> = <a, b>^2`.

    The entries are `x_i x_j` for i <= j, those with i < j times sqrt(2).
    """
    n = x.shape[-1]
    rows, columns = torch.triu_indices(n, n, device=x.device)
    weight = torch.where(rows == columns, 1.0, 2.0**0.5).to(x.dtype)
    return x[..., rows] * x[..., columns] * weight
