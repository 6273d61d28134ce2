"""Values at block rate, and the choice of blocks by the weights that attention gave them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cache import Blocks, spread
from .history import last_tokens
from .place import Place

Force = Callable[[Tensor, Tensor], Tensor]  # (i, j) -> bool


def blocks(x: Tensor, place: Place, key: str, rate: Blocks) -> Tensor:
    """The blocks that this call completes, `[R, M, width, ...]` of `x [B, T, ...]`, a row a sequence.

    Row r begins with its first block that was not whole before the call. A row may hold fewer than M whole ones:
    the rest is finite and without meaning. The state entry is the last `width - 1` tokens, `[N, width - 1, ...]`.
    """
    layout = place.layout
    rows = x if layout.cu_seqlens is None else spread(place, x)
    block = torch.arange(rate.new(place), device=x.device).unsqueeze(1)
    inside = torch.arange(rate.width, device=x.device)
    past = place.read(key)
    if layout.fresh:
        index = (block * rate.stride + inside).clamp(max=max(rows.shape[1] - 1, 0))
        if not rows.shape[1]:
            rows = torch.nn.functional.pad(rows, (0, 0) * (x.dim() - 2) + (0, 1))
        found = rows[:, index]
    else:
        assert past is not None and layout.start_N is not None
        known = torch.cat([past.to(x.dtype), rows], 1)
        start = layout.start_N.view(-1, 1, 1)
        first = rate.complete(start)
        column = (first + block) * rate.stride + inside - start + (rate.width - 1)
        row = torch.arange(known.shape[0], device=x.device).view(-1, 1, 1)
        found = known[row, column.clamp(min=0, max=known.shape[1] - 1)]
    if past is not None:
        flat = last_tokens(x.flatten(2) if x.dim() > 2 else x.unsqueeze(2), _flat(past), layout.cu_seqlens)
        place.write(key, flat.view(past.shape))
    return found


def _flat(past: Tensor) -> Tensor:
    return past.flatten(2) if past.dim() > 2 else past.unsqueeze(2)


def regroup(p: Tensor, place: Place, before: Blocks, width: int) -> Tensor:
    """Weights `[B, T, ..., S]` over blocks as weights over blocks of `width` tokens, `[B, T, ..., S2]`.

    Each counts times the tokens that both blocks hold, over the stride of the old ones.
    """
    old = torch.arange(p.shape[-1], device=p.device).unsqueeze(1) * before.stride
    new = torch.arange(_count(place, width), device=p.device) * width
    shared = torch.minimum(old + before.width, new + width) - torch.maximum(old, new)
    return p @ (shared.clamp(min=0).to(p.dtype) / before.stride)


def top_blocks(p: Tensor, n: int, place: Place, width: int, force: Force | None = None) -> Tensor:
    """Which blocks of `width` tokens each query looks at: bool `[B, T, ..., S]` from weights `p [B, T, ..., S']`.

    Those with `force(i, j)` first, then the heaviest of those that are whole at the query's place i, `n` in all; of
    equal ones the earlier. Blocks that begin after the query are never chosen. No gradient.
    """
    count = _count(place, width)
    p = p.detach()
    p = torch.cat([p, p.new_zeros(*p.shape[:-1], count)], -1)[
        ..., :count
    ]  # the last block may not be whole yet
    i = place.layout.positions_BT.view(*place.layout.positions_BT.shape, *(1,) * (p.dim() - 2))
    j = torch.arange(count, device=p.device)
    begun = j * width <= i
    forced = torch.zeros_like(begun) if force is None else force(i, j) & begun
    p = p.masked_fill(~(j * width + (width - 1) <= i), float("-inf")).masked_fill(forced, float("inf"))
    rank = p.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    chosen = rank < n
    return (chosen & (p > float("-inf"))) | forced.expand_as(p)


def _count(place: Place, width: int) -> int:
    """Blocks that the longest sequence has begun."""
    return max(-(-place.layout.longest // width), 1)
