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
