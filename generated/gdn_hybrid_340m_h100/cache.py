"""Caches of attended values: one slot a token, or a ring of the last ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .place import Place


class Attended(NamedTuple):
    """What the queries of a call may see. Absent tokens have a negative position."""

    values: Tensor  # [R, S, ...]
    positions: Tensor  # [R or 1, S] int64
    full: bool  # every entry is a token of its sequence, and none is later than the last query
    kind: str  # "fresh": the call's own tokens, "slots": in order, "ring": the last ones in any order


class Blocks(NamedTuple):
    """Blocks of `width` tokens, one every `stride` tokens of a sequence; only whole ones count."""

    width: int
    stride: int

    def last(self, block: Tensor) -> Tensor:
        """The place of a block's last token."""
        return block * self.stride + (self.width - 1)

    def within(self, length: int) -> int:
        """How many blocks `length` tokens hold; at least one, so that no tensor is empty."""
        return max((length - self.width) // self.stride + 1, 1)

    def complete(self, length_N: Tensor) -> Tensor:
        """How many blocks the first tokens of each sequence hold."""
        return ((length_N - self.width + self.stride) // self.stride).clamp(min=0)

    def new(self, place: Place) -> int:
        """No sequence completes more blocks than this in a call; at least one."""
        layout = place.layout
        return self.within(layout.longest_new) if layout.fresh else -(-layout.longest_new // self.stride)


def slot_positions(length_N: Tensor, slots: int) -> Tensor:
    """`[N, slots]`: the position that each slot holds after `length_N` tokens, negative where it is empty.

    Token p goes to slot p % slots, so slot s holds the last p < length with p % slots == s.
    """
    last = length_N.unsqueeze(1) - 1
    return last - (last - torch.arange(slots, device=length_N.device)) % slots


def attended(place: Place, key: str, x: Tensor, ring: bool) -> Attended:
    """Store the call's tokens `x` under `key`, and give all tokens that the call's queries may attend to.

    `x` is `[B, T, ...]`; a packed call gives `[N, Q, ...]`, each sequence padded at its end. Several readers
    of one entry share the work: the first one stores.
    """
    if place.memory is None:
        return Attended(x, _new_positions(place), place.layout.cu_seqlens is None, "fresh")
    name = "attended", place.prefix + key
    if name not in place.memo:
        place.memo[name] = _attended(place, key, x, ring)
    result: Attended = place.memo[name]
    return result


def is_ring(place: Place, key: str, window: int | None) -> bool:
    """Whether the entry keeps the last tokens of a window only. Blocks are no ring."""
    if place.memory is None or window is None:
        return False
    return place.memory[place.prefix + key].shape[1] <= window


def cached(place: Place, key: str, x: Tensor, window: int | None = None) -> Tensor:
    """Store the call's tokens of `x [B, T, ...]`, and give those of all tokens that its queries may attend to.

    Keys and values are computed from the result. Where nothing is older than the call this is `x` itself, else
    `[N, S, ...]`, whose places `seen_tokens` knows.
    """
    if place.memory is None:
        return x
    packed = place.layout.cu_seqlens is not None
    found = attended(place, key, spread(place, x) if packed else x, is_ring(place, key, window))
    return x if place.layout.fresh else found.values


def seen_tokens(place: Place, key: str) -> Place:
    """The place of the tokens that `cached` gave for `key`: their positions are those at which they were stored."""
    if place.memory is None or place.layout.fresh:
        return place
    seen: Attended = place.memo["attended", place.prefix + key]
    name = "seen", seen.kind, seen.values.shape[1]
    if name not in place.memo:
        positions = seen.positions.clamp(min=0)
        layout = place.layout._replace(
            cu_seqlens=None, positions_BT=positions, uniform=positions.shape[0] == 1, sequence_T=None
        )
        place.memo[name] = Place(layout)
    result: Place = place.memo[name]
    return result


def recomputed(place: Place, key: str, x: Tensor) -> Attended:
    """What was computed from the result of `cached` for `key`."""
    if place.memory is None or place.layout.fresh:
        return Attended(x, _new_positions(place), place.layout.cu_seqlens is None, "fresh")
    seen: Attended = place.memo["attended", place.prefix + key]
    return seen._replace(values=x)


def store(place: Place, key: str, x: Tensor) -> None:
    """Put the call's tokens `x [B, T, ...]` into their slots, for an operation that reads the entry by itself."""
    stored = place.read(key)
    if stored is not None:
        _store(place, key, x if place.layout.cu_seqlens is None else spread(place, x), stored)


def attended_blocks(place: Place, key: str, x: Tensor, blocks: Blocks) -> Attended:
    """`attended` for values at block rate: `x [R, M, ...]`, the blocks that the call may have completed.

    Row r begins with the first block that was not complete before the call; the positions count blocks.
    """
    name = "attended", place.prefix + key
    if name not in place.memo:
        layout = place.layout
        count = x.shape[1] if layout.fresh else blocks.within(layout.longest)
        values = x
        if place.memory is not None:
            stored = _store_blocks(place, key, x, blocks)
            values = x if layout.fresh else stored[:, :count].to(x.dtype)
        positions = torch.arange(count, device=x.device).unsqueeze(0)
        place.memo[name] = Attended(values, positions, False, "blocks")
    result: Attended = place.memo[name]
    return result


def _store_blocks(place: Place, key: str, x: Tensor, blocks: Blocks) -> Tensor:
    """Put each completed block into its slot; gives the entry as it now is."""
    layout, stored = place.layout, place.read(key)
    assert stored is not None and layout.start_N is not None
    x = x.to(stored.dtype)
    new = layout.longest_new if layout.cu_seqlens is None else layout.cu_seqlens.diff()
    before, after = blocks.complete(layout.start_N), blocks.complete(layout.start_N + new)
    slot = torch.arange(stored.shape[1], device=x.device) if x.shape[1] > 1 else None
    rows = torch.arange(x.shape[0], device=x.device)
    if slot is None:
        at = before.clamp(max=stored.shape[1] - 1)
        finished = (after > before).view(-1, *(1,) * (x.dim() - 2))
        value = torch.where(finished, x[:, 0], stored[rows, at])
        if place.in_place:
            stored.index_put_((rows, at), value)
        else:
            place.write(key, stored.index_put((rows, at), value))
    else:
        source = slot - before.unsqueeze(1)
        fresh = (source >= 0) & (slot < after.unsqueeze(1))
        index = source.clamp(min=0, max=x.shape[1] - 1)
        fresh = fresh.view(*fresh.shape, *(1,) * (x.dim() - 2))
        place.write(key, torch.where(fresh, x[rows.unsqueeze(1), index], stored))
    result = place.read(key)
    assert result is not None
    return result


def spread(place: Place, x: Tensor) -> Tensor:
    """A packed row `[1, T, ...]` as `[N, Q, ...]`, each sequence padded at its end by other tokens."""
    layout = place.layout
    assert layout.cu_seqlens is not None
    if "spread" not in place.memo:
        offset = torch.arange(layout.longest_new, device=x.device)
        place.memo["spread"] = (layout.cu_seqlens[:-1, None] + offset).clamp(max=x.shape[1] - 1)
    return x[0][place.memo["spread"]]


def gather_back(place: Place, x: Tensor) -> Tensor:
    """The inverse of `spread`."""
    cu_seqlens, sequence_T = place.layout.cu_seqlens, place.layout.sequence_T
    assert cu_seqlens is not None and sequence_T is not None
    if not x.shape[1]:  # every sequence is empty, and all tokens belong to none
        return x.new_zeros(1, sequence_T.shape[0], *x.shape[2:])
    if "gather" not in place.memo:
        row = sequence_T.clamp(max=x.shape[0] - 1)
        token = torch.arange(sequence_T.shape[0], device=x.device)
        place.memo["gather"] = row, (token - cu_seqlens[row]).clamp(max=x.shape[1] - 1)
    return x[place.memo["gather"]].unsqueeze(0)


def query_positions(place: Place) -> Tensor:
    """Positions of the queries: `[R or 1, Q]`, one row where all sequences agree."""
    return _memo(place, "queries", _query_positions)


def _query_positions(place: Place) -> Tensor:
    layout = place.layout
    if layout.cu_seqlens is None:
        return layout.positions_BT[:1] if layout.uniform else layout.positions_BT
    offset = torch.arange(layout.longest_new, device=layout.cu_seqlens.device).unsqueeze(0)
    return offset if layout.start_N is None else layout.start_N.unsqueeze(1) + offset


def _new_positions(place: Place) -> Tensor:
    """Positions of the call's own tokens as keys: those that only fill up a sequence are absent."""
    return _memo(place, "new", _find_new_positions)


def _find_new_positions(place: Place) -> Tensor:
    positions, cu_seqlens = query_positions(place), place.layout.cu_seqlens
    if cu_seqlens is None:
        return positions
    offset = torch.arange(place.layout.longest_new, device=positions.device)
    return torch.where(offset < cu_seqlens.diff().unsqueeze(1), positions, -1)


def _slots_in_order(place: Place) -> Tensor:
    return torch.arange(place.layout.longest, device=place.layout.positions_BT.device).unsqueeze(0)


def _memo(place: Place, name: str, function: Callable[[Place], Tensor]) -> Tensor:
    """What every layer of a call needs alike is computed by the first."""
    if name not in place.memo:
        place.memo[name] = function(place)
    result: Tensor = place.memo[name]
    return result


def _attended(place: Place, key: str, x: Tensor, ring: bool) -> Attended:
    layout = place.layout
    stored = place.read(key)
    assert stored is not None
    if layout.fresh:
        _store(place, key, x, stored)
        return Attended(x, _new_positions(place), layout.cu_seqlens is None, "fresh")
    assert layout.start_N is not None
    slots = stored.shape[1]
    single = x.shape[1] == 1 and layout.cu_seqlens is None
    if ring and not single:
        values = torch.cat([stored.to(x.dtype), x], 1)
        new = _new_positions(place).expand(x.shape[0], -1)
        positions = torch.cat([slot_positions(layout.start_N, slots), new], 1)
        _store(place, key, x, stored)
        return Attended(values, positions, False, "ring")
    values = _store(place, key, x, stored)
    if ring:
        held = min(layout.longest, slots)
        positions = slot_positions(layout.start_N + 1, slots)[:, :held]
        return Attended(values[:, :held].to(x.dtype), positions, layout.uniform, "ring")
    positions = _memo(place, "slots", _slots_in_order)
    return Attended(values[:, : layout.longest].to(x.dtype), positions, layout.uniform and single, "slots")


def _store(place: Place, key: str, x: Tensor, stored: Tensor) -> Tensor:
    """Put each token into its slot; gives the entry as it now is."""
    layout = place.layout
    assert layout.start_N is not None
    slots, new = stored.shape[1], x.shape[1]
    x = x.to(stored.dtype)
    if layout.cu_seqlens is not None:
        lengths = layout.cu_seqlens.diff()
        held = slot_positions(layout.start_N + lengths, slots)
        source = held - layout.start_N.unsqueeze(1)
        index = source.clamp(min=0, max=new - 1)
        fresh = (source >= 0).view(source.shape + (1,) * (stored.dim() - 2))
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        place.write(key, torch.where(fresh, x[rows, index], stored))
    elif place.in_place and layout.uniform and (new == 1 or layout.longest <= slots):
        stored.narrow(1, (layout.longest - new) % slots, new).copy_(x)
    else:
        kept = min(new, slots)
        slot = layout.positions_BT[:, new - kept :] % slots
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        if place.in_place:
            stored.index_put_((rows, slot), x[:, new - kept :])
        else:
            place.write(key, stored.index_put((rows, slot), x[:, new - kept :]))
    result = place.read(key)
    assert result is not None
    return result
