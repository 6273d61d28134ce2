"""The last few tokens of each sequence: stood before the new ones, and taken out for the next call."""

from __future__ import annotations

import torch
from torch import Tensor


def extend(
    x_BTC: Tensor, past: Tensor | None, cu_seqlens: Tensor | None, width: int
) -> tuple[Tensor, Tensor | None]:
    """Stand `width` rows before each sequence: those of `past [N, width, C]`, or zeros.

    Dense: `[B, width + T, C]` and None. Packed: one row that holds every sequence with its past, and
    `rows [T]`, the place of each token in it. A token and its `width` predecessors are always neighbours.
    """
    if cu_seqlens is None:
        if past is None:
            return torch.nn.functional.pad(x_BTC, (0, 0, width, 0)), None
        return torch.cat([past.to(x_BTC.dtype), x_BTC], 1), None
    total, channels = x_BTC.shape[1:]
    sequences = cu_seqlens.shape[0] - 1
    token = torch.arange(total, device=x_BTC.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
    rows = token + (sequence + 1) * width
    extended = x_BTC.new_zeros(total + (sequences + 1) * width, channels).index_copy(0, rows, x_BTC[0])
    if past is not None:
        extended = extended.index_copy(0, past_rows(cu_seqlens, width), past.to(x_BTC.dtype).flatten(0, 1))
    return extended.unsqueeze(0), rows


def past_rows(cu_seqlens: Tensor, width: int) -> Tensor:
    """Where `extend` puts the past of each sequence: `[N * width]`."""
    sequence = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    first = cu_seqlens[:-1] + sequence * width
    return (first.unsqueeze(1) + torch.arange(width, device=cu_seqlens.device)).flatten()


def last_tokens(x_BTC: Tensor, past: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The past `[N, width, C]` of the next call. Sequences may be shorter than it, or empty."""
    width = past.shape[1]
    past = past.to(x_BTC.dtype)
    if cu_seqlens is None:
        length = x_BTC.shape[1]
        if length >= width:
            return x_BTC[:, length - width :].clone()  # a view would keep all of x alive
        return torch.cat([past[:, length:], x_BTC], 1)
    lengths = cu_seqlens.diff().unsqueeze(1)
    back = torch.arange(width, device=x_BTC.device) - width  # -width .. -1, counted from the sequence's end
    token = (cu_seqlens[1:].unsqueeze(1) + back).clamp(min=0)
    if x_BTC.shape[1] == 0:
        return past
    new = x_BTC[0][token]
    old = past.gather(1, (lengths + back + width).clamp(max=width - 1).unsqueeze(2).expand_as(past))
    return torch.where((lengths + back >= 0).unsqueeze(2), new, old)
