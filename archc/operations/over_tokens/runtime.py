"""Sums and means over the tokens that belong to a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from .place import Place


def sum_of_call(x: Tensor, place: Place) -> Tensor:
    """The sum over all tokens of the call that belong to a sequence: `[B, T, ...] -> [...]`, float32 or wider."""
    return _present(x, place).sum((0, 1))


def mean_of_call(x: Tensor, place: Place) -> Tensor:
    """The mean over all tokens of the call that belong to a sequence: `[B, T, ...] -> [...]`, 0 for no token."""
    cu_seqlens = place.layout.cu_seqlens
    total = sum_of_call(x, place)
    if cu_seqlens is None:
        return total / max(x.shape[0] * x.shape[1], 1)
    return total / cu_seqlens[-1].clamp(min=1)


def sum_of_sequence(x: Tensor, place: Place) -> Tensor:
    """The sum over the tokens of the same sequence, at each of them: `[B, T, ...] -> [B, T, ...]`."""
    total, row = _by_sequence(x, place)
    return total.expand_as(x) if row is None else total[row].unsqueeze(0)


def mean_of_sequence(x: Tensor, place: Place) -> Tensor:
    """The mean over the tokens of the same sequence, at each of them: `[B, T, ...] -> [B, T, ...]`."""
    total, row = _by_sequence(x, place)
    if row is None:
        return (total / max(x.shape[1], 1)).expand_as(x)
    assert place.layout.cu_seqlens is not None
    count = place.layout.cu_seqlens.diff().clamp(min=1)
    return (total / count.view(-1, *(1,) * (x.dim() - 2)))[row].unsqueeze(0)


def _present(x: Tensor, place: Place) -> Tensor:
    """`x` in float32 or wider, 0 at tokens that belong to no sequence."""
    x = x if x.dtype == torch.float64 else x.float()
    cu_seqlens = place.layout.cu_seqlens
    if cu_seqlens is None:
        return x
    nobody = torch.arange(x.shape[1], device=x.device) >= cu_seqlens[-1]
    return x.masked_fill(nobody.view(1, -1, *(1,) * (x.dim() - 2)), 0)


def _by_sequence(x: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
    """Dense: `[B, 1, ...]` and None. Packed: `[N, ...]` and the sequence of each token."""
    layout = place.layout
    if layout.cu_seqlens is None or layout.sequence_T is None:
        return _present(x, place).sum(1, keepdim=True), None
    sequences = layout.cu_seqlens.shape[0] - 1
    row = layout.sequence_T.clamp(max=sequences - 1)
    present = _present(x, place)[0]
    return present.new_zeros(sequences, *present.shape[1:]).index_add(0, row, present), row
