"""Softmax attention with grouped heads, declared masks and scores, caches and rings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .cache import (
    Attended,
    Blocks,
    attended,
    attended_blocks,
    gather_back,
    is_ring,
    query_positions,
    recomputed,
    spread,
)
from .place import Place

Mask = Callable[..., Tensor]  # (i, j, a_i, a_j, ...) -> bool
Score = Callable[..., Tensor]  # (s, i, j, a_i, a_j, ...) -> s

# Elements of the scores that are held at a time where they must be held.
_SCORES = 2**26


class _Scoring(NamedTuple):
    """What becomes of the pairs' products."""

    scale: float
    score: Score | None
    sink: Tensor | None
    outputs: tuple[str, ...]


class _Pairs(NamedTuple):
    """Which query may see which key: positions, and the conditions on them."""

    i: Tensor  # [R or 1, Q]
    j: Tensor  # [R or 1, S]
    document: Tensor | None  # [S]: the sequence of each token of a packed row, queries and keys alike
    causal: bool
    window: int | None
    mask: Mask | None
    tokens: tuple[
        tuple[Tensor, Tensor], ...
    ] = ()  # values at the queries [R, Q] or [R, Q, H], and at the keys
    blocks: Blocks | None = None  # keys are blocks: one is visible when its last token is
    select: tuple[Tensor, int] | None = None  # chosen blocks [R, Q, G, S], and their tokens

    def at(self, start: int, stop: int) -> list[Tensor]:
        """Positions of some queries and all keys, then values there, all to broadcast over `[R, H, Q, S]`."""
        found = [self.i[:, None, start:stop, None], self.j[:, None, None, :]]
        for query, key in self.tokens:
            query, key = query[:, start:stop].unsqueeze(-1), key.unsqueeze(-1)
            found += [
                query.flatten(2).transpose(1, 2).unsqueeze(3),
                key.flatten(2).transpose(1, 2).unsqueeze(2),
            ]
        return found

    def allowed(self, start: int, stop: int) -> Tensor:
        """`[R or 1, H or 1, stop - start, S]`."""
        i, j, *values = self.at(start, stop)
        result = j >= 0
        if self.causal:
            result = result & ((j if self.blocks is None else self.blocks.last(j)) <= i)
        if self.window is not None:
            result = result & (i - j < self.window)
        if self.document is not None:
            result = result & (self.document[start:stop, None] == self.document)
        if self.mask is not None:
            result = result & self.mask(i, j, *values)
        if self.select is not None:
            result = result & self._selected(start, stop)
        return result

    def _selected(self, start: int, stop: int) -> Tensor:
        """`[R, G, stop - start, S]`: whether a key lies in a chosen block."""
        assert self.select is not None
        chosen, width = self.select
        chosen = chosen[:, start:stop].transpose(1, 2)
        block = (self.j.clamp(min=0) // width).clamp(max=chosen.shape[3] - 1)
        index = block[:, None, None, :].expand(*chosen.shape[:3], -1)
        return chosen.gather(3, index)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    place: Place,
    keys: str = "k",
    values: str = "v",
    mask: Mask | None = None,
    score: Score | None = None,
    window: int | None = None,
    sink: Tensor | None = None,
    causal: bool = True,
    outputs: tuple[str, ...] = ("out",),
    tokens: Mapping[str, Tensor] | None = None,
    kept: str | None = None,
    blocks: Blocks | None = None,
    select: Tensor | None = None,
    select_width: int = 1,
) -> Any:
    """`softmax(scale * q k^T) v` over the tokens of the same sequence.

    `q [B, T, H, K]`, `k [B, T, G, K]`, `v [B, T, G, V]`; query head h reads head `h * G // H`. `keys` and
    `values` name the state entries `[N, slots, G, K]` and `[N, slots, G, V]`; calls that read one value name
    one entry. With `window`, entries of at most `window` slots are rings. `mask(i, j)` and `score(s, i, j)`
    see the tokens' places in their sequence and broadcast over `[R, H, Q, S]`; a mask only removes. `sink
    [H]` is a logit without a value. Scores are float32 or wider wherever they are held.

    `tokens` maps state entries to values `[B, T]` or `[B, T, H]` that the callables see too: after i and j come,
    for each, its value at the query and at the key.

    `kept` names the entry of a value that k and v were computed again from (see `cached`): nothing is stored here.
    `blocks`: k and v are at block rate, `[B, M, G, K]`; j counts blocks. `select [B, T, G, S]` (or one head for
    all) says which blocks of `select_width` tokens a query looks at.

    `outputs`: "out" `[B, T, H, V]`; "lse" and "max" `[B, T, H]` of the scores without the sink, -inf where no
    key is allowed; "probs" `[B, T, H, S]` over the key's place in its sequence. One output is given bare,
    several as a tuple. A query without any allowed key gives zeros.
    """
    if not causal and place.memory is not None:
        raise ValueError(f"{place.prefix}{keys}: attention that is not causal has no state")
    plain = window is None and outputs == ("out",) and kept is None and blocks is None and not tokens
    plain = plain and mask is None and score is None and sink is None and select is None
    if plain and _decodes_alike(q, place):
        return _next_token(q, k, v, scale, place, keys, values)
    layout, scoring, given = place.layout, _Scoring(scale, score, sink, outputs), tokens or {}
    if layout.cu_seqlens is not None:
        sequences, total = layout.cu_seqlens.shape[0] - 1, q.shape[1]
        skewed = sequences * layout.longest_new**2 > total * total and blocks is None and select is None
        if skewed and layout.fresh and "probs" not in outputs:
            if place.memory is not None:
                if kept is None:
                    attended(place, keys, spread(place, k), False)
                    attended(place, values, spread(place, v), False)
                for name, value in given.items():
                    attended(place, name, spread(place, value), False)
            # Sequences of very different lengths: the row attends to itself, a mask tells documents apart.
            positions = layout.positions_BT
            seen = Attended(k, positions, False, "row")
            rows = tuple((value, value) for value in given.values())
            pairs = _Pairs(positions, positions, layout.sequence_T, causal, window, mask, rows)
            return _bare(_attend(q, seen, v, place, pairs, scoring))
        q = spread(place, q)
        if blocks is None and (kept is None or layout.fresh):
            k, v = spread(place, k), spread(place, v)
        given = {name: spread(place, value) for name, value in given.items()}
        select = None if select is None else spread(place, select)
    ring = is_ring(place, keys if kept is None else kept, window)
    if ring and "probs" in outputs and not layout.fresh:
        raise ValueError(f"{place.prefix}{keys}: the keys of a ring have no fixed places to give probs for")
    if blocks is not None:
        seen = attended_blocks(place, keys, k, blocks)
        seen_v = attended_blocks(place, values, v, blocks).values
    elif kept is not None:
        seen, seen_v = recomputed(place, kept, k), v
    else:
        seen = attended(place, keys, k, ring)
        seen_v = attended(place, values, v, ring).values
    both = tuple((value, attended(place, name, value, ring).values) for name, value in given.items())
    chosen = None if select is None else (select, select_width)
    pairs = _Pairs(query_positions(place), seen.positions, None, causal, window, mask, both, blocks, chosen)
    results = _attend(q, seen, seen_v, place, pairs, scoring)
    if layout.cu_seqlens is not None:
        results = [gather_back(place, result) for result in results]
    return _bare(results)


def _decodes_alike(q: Tensor, place: Place) -> bool:
    """Whether each sequence gets one token, all have one length, and their caches are held in place."""
    alike = place.in_place and place.layout.uniform and q.shape[1] == 1 and place.layout.cu_seqlens is None
    return alike and not torch.compiler.is_compiling()


def _next_token(
    q: Tensor, k: Tensor, v: Tensor, scale: float, place: Place, keys: str, values: str
) -> Tensor:
    """The common step of decoding, in few calls: store the token's key and value, attend to the slots in use."""
    assert place.memory is not None
    held_k, held_v = place.memory[place.prefix + keys], place.memory[place.prefix + values]
    longest = place.layout.longest
    held_k.select(1, longest - 1).copy_(k[:, 0])
    held_v.select(1, longest - 1).copy_(v[:, 0])
    return _one_query(q, held_k[:, :longest].to(q.dtype), held_v[:, :longest].to(q.dtype), scale, None)


def _bare(results: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return results[0] if len(results) == 1 else tuple(results)


def _attend(
    q: Tensor, seen: Attended, v: Tensor, place: Place, pairs: _Pairs, scoring: _Scoring
) -> list[Tensor]:
    """Choose the cheapest form that covers the case."""
    length = q.shape[1]
    k, v = seen.values.to(q.dtype), v.to(q.dtype)
    aligned = seen.kind == "fresh"
    window = pairs.window
    if aligned and window is not None and pairs.causal and not torch.compiler.is_compiling():
        if window >= length:
            pairs = pairs._replace(window=None)
        elif length > 2 * window and "probs" not in scoring.outputs and pairs.select is None:
            return _banded(q, k, v, pairs, window, scoring)
    if (
        scoring.score is not None
        or scoring.sink is not None
        or scoring.outputs != ("out",)
        or pairs.select is not None
    ):
        return _explicit(q, k, v, pairs, scoring)
    if pairs.mask is not None or pairs.blocks is not None:
        return [_masked(q, k, v, scoring.scale, pairs)]
    if length == 1 and seen.full and (pairs.window is None or seen.kind == "ring"):
        return [_one_query(q, k, v, scoring.scale, None)]
    if aligned and pairs.window is None and (pairs.causal or seen.full):
        return [_fused(q, k, v, scoring.scale, None, pairs.causal)]
    name = "allowed", seen.kind, pairs.window, pairs.causal
    if name not in place.memo:
        allowed = pairs.allowed(0, length)
        # Queries that only fill up a sequence may see nothing. They are dropped, but must stay finite.
        place.memo[name] = allowed | ~allowed.any(-1, keepdim=True)
    if length == 1:
        return [_one_query(q, k, v, scoring.scale, place.memo[name])]
    return [_fused(q, k, v, scoring.scale, place.memo[name], False)]


def _one_query(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None) -> Tensor:
    """Decoding: the query heads of a group are the queries of their key head."""
    rows, _, heads, width = q.shape
    out = F.scaled_dot_product_attention(
        q.reshape(rows, k.shape[2], heads // k.shape[2], width),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=allowed,
        scale=scale,
    )
    return out.reshape(rows, 1, heads, v.shape[3])


def _masked(q: Tensor, k: Tensor, v: Tensor, scale: float, pairs: _Pairs) -> Tensor:
    """A declared mask may leave a query without keys: its result is zero, and so are its gradients."""
    allowed = pairs.allowed(0, q.shape[1])
    empty = ~allowed.any(-1, keepdim=True)
    return _fused(q, k, v, scale, allowed | empty, False).masked_fill(empty.transpose(1, 2), 0)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None, causal: bool) -> Tensor:
    """torch's attention. Its fused kernels want K and V equal: the narrower one is padded with zeros."""
    width = v.shape[3]
    if width < q.shape[3]:
        v = F.pad(v, (0, q.shape[3] - width))
    elif width > q.shape[3]:
        q, k = F.pad(q, (0, width - q.shape[3])), F.pad(k, (0, width - k.shape[3]))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=allowed,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)[..., :width]


def _banded(q: Tensor, k: Tensor, v: Tensor, pairs: _Pairs, window: int, scoring: _Scoring) -> list[Tensor]:
    """A window far shorter than the sequence: blocks of `window` queries see their own block and the last."""
    rows, length = q.shape[:2]
    blocks = -(-length // window)

    def own(x: Tensor, fill: int = 0) -> Tensor:
        filled = F.pad(x, (0, 0) * (x.dim() - 2) + (0, blocks * window - length), value=fill)
        return filled.view(x.shape[0], blocks, window, *x.shape[2:])

    def with_previous(x: Tensor, fill: int = 0) -> Tensor:
        block = own(x, fill)
        previous = F.pad(block[:, :-1], (0, 0) * (x.dim() - 1) + (1, 0), value=fill)
        return torch.cat([previous, block], 2).flatten(0, 1)

    i, j = own(pairs.i.expand(rows, -1)), with_previous(pairs.j.expand(rows, -1), -1)
    tokens = tuple((own(query).flatten(0, 1), with_previous(key)) for query, key in pairs.tokens)
    folded = pairs._replace(i=i.flatten(0, 1), j=j, tokens=tokens)
    q, k, v = own(q).flatten(0, 1), with_previous(k), with_previous(v)
    if scoring.score is not None or scoring.sink is not None or scoring.outputs != ("out",):
        results = _explicit(q, k, v, folded, scoring)
    else:
        results = [_masked(q, k, v, scoring.scale, folded)]
    return [result.reshape(rows, blocks * window, *result.shape[2:])[:, :length] for result in results]


def _explicit(q: Tensor, k: Tensor, v: Tensor, pairs: _Pairs, scoring: _Scoring) -> list[Tensor]:
    """The scores as a tensor, some queries at a time."""
    rows, length, heads = q.shape[:3]
    if k.shape[1] == 0:
        k, v = F.pad(k, (0, 0, 0, 0, 0, 1)), F.pad(v, (0, 0, 0, 0, 0, 1))
        absent = tuple((query, key.new_zeros(key.shape[0], 1, *key.shape[2:])) for query, key in pairs.tokens)
        pairs = pairs._replace(j=F.pad(pairs.j, (0, 1), value=-1), tokens=absent)
    with torch.autocast(q.device.type, enabled=False):
        if torch.compiler.is_compiling():  # a loop would make a graph for each length
            return _scores(q, k, v, pairs, 0, scoring)
        step = max(1, min(length, _SCORES // max(1, rows * heads * k.shape[1])))
        parts = [
            _scores(q[:, start : start + step], k, v, pairs, start, scoring)
            for start in range(0, max(1, length), step)
        ]
    return parts[0] if len(parts) == 1 else [torch.cat(part, 1) for part in zip(*parts, strict=True)]


def _by_head(allowed: Tensor, heads: int) -> Tensor:
    """`[R, G, Q, S]` as `[R, H, Q, S]`: query head h belongs to key head `h * G // H`."""
    groups = allowed.shape[1]
    return allowed if groups in (1, heads) else allowed.repeat_interleave(heads // groups, 1)


def _scores(q: Tensor, k: Tensor, v: Tensor, pairs: _Pairs, start: int, scoring: _Scoring) -> list[Tensor]:
    rows, length, heads, _ = q.shape
    groups, keys, width = k.shape[2], k.shape[1], v.shape[3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    per_group = q.to(wide).transpose(1, 2).reshape(rows, groups, heads // groups * length, q.shape[3])
    s = scoring.scale * (per_group @ k.to(wide).permute(0, 2, 3, 1)).view(rows, heads, length, keys)
    if scoring.score is not None:
        s = scoring.score(s, *pairs.at(start, start + length)).to(wide)
    s = s.masked_fill(~_by_head(pairs.allowed(start, start + length), heads), float("-inf"))
    top = s.amax(-1, keepdim=True)
    shift = top.detach()
    if scoring.sink is not None:
        logit = scoring.sink.to(wide).view(1, heads, 1, 1)
        shift = torch.maximum(shift, logit.detach())
    shift = shift.masked_fill(shift == float("-inf"), 0)
    weights = torch.exp(s - shift)
    total = weights.sum(-1, keepdim=True)
    nothing = top == float("-inf")
    divisor = total.masked_fill(nothing, 1)
    if scoring.sink is not None:
        divisor = total + torch.exp(logit - shift)
    found = []
    for output in scoring.outputs:
        if output == "out":
            per_group = (weights / divisor).view(rows, groups, -1, keys)
            out = (per_group @ v.to(wide).transpose(1, 2)).view(rows, heads, length, width)
            found.append(out.transpose(1, 2).to(q.dtype))
        elif output == "lse":
            base = top.detach().masked_fill(nothing, 0)
            lse = base + torch.exp(s - base).sum(-1, keepdim=True).masked_fill(nothing, 1).log()
            found.append(lse.masked_fill(nothing, float("-inf")).squeeze(-1).transpose(1, 2))
        elif output == "max":
            found.append(top.squeeze(-1).transpose(1, 2))
        elif output == "probs":
            found.append((weights / divisor).transpose(1, 2))
        else:
            raise ValueError(f"unknown output {output!r} of attention: out, lse, max or probs")
    return found
