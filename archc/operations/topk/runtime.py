"""The largest entries of the last axis; the others become minus infinity, which stands for absent."""

from __future__ import annotations

import torch
from torch import Tensor


def topk(x: Tensor, k: int, *, by: Tensor | None = None) -> Tensor:
    """`x [..., n]` with all but `k` entries absent; chosen by `by [..., n]`, which gets no gradient, or by `x`."""
    chosen = (x if by is None else by).detach().topk(k, dim=-1).indices
    keep = torch.zeros_like(x, dtype=torch.bool).scatter_(-1, chosen, True)
    return x.masked_fill(~keep, float("-inf"))


def present(x: Tensor) -> Tensor:
    """`x` with absent entries as 0: what a sum adds up."""
    return x.masked_fill(x == float("-inf"), 0)


def stand_in(x: Tensor) -> Tensor:
    """`x` with absent entries as 1, where the usual functions have a value and a derivative."""
    return x.masked_fill(x == float("-inf"), 1)


def keep_absent(result: Tensor, x: Tensor) -> Tensor:
    """A function of `x`, with the entries that are absent in `x` absent again."""
    return result.masked_fill(x == float("-inf"), float("-inf"))
