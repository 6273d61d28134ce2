"""Tiles of a recurrence: which tokens of which sequence stand in which chunk."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tiling(NamedTuple):
    """How sequences are cut into chunks.

    Tiles are ordered by step of the walk, then by sequence (longest first), then by head. So each step of the
    walk is one contiguous range, and the states that leave the tiles lie in the tiles' order, after the
    initial ones. Places of a chunk past the end of its sequence hold zeros, which leave the state as it is.
    """

    chunk: int  # tokens of a tile
    length: int
    heads: int
    dtype: torch.dtype  # of the mathematics
    walk: list[tuple[slice, slice, slice]]  # tiles, states that enter them, states that leave them
    sequences: int
    tiles: int
    bound: int  # tiles that the shapes alone allow for
    tokens_PC: Tensor | None  # packed: the token of each place of each chunk of a sequence
    valid_PC: Tensor | None
    order_N: Tensor | None  # packed: sequences, longest first
    last_N: Tensor | None  # packed: where each sequence's final state lies

    def gather(self, x: Tensor) -> Tensor:
        """`[B, T, h, ...]` to `[M, C, ...]` in the dtype of the mathematics, shared heads repeated."""
        C, h, rest = self.chunk, x.shape[2], x.shape[3:]
        chunks = self.tiles // self.heads
        out = x.new_empty(chunks, h, self.heads // h, C, *rest, dtype=self.dtype)
        if self.tokens_PC is not None and self.valid_PC is not None:
            rows = x[0].index_select(0, self.tokens_PC.flatten()).view(-1, C, h, *rest)
            rows = rows.masked_fill(~self.valid_PC.view(-1, C, *(1,) * (x.dim() - 2)), 0)
            out.copy_(rows.transpose(1, 2).unsqueeze(2))
        elif chunks:
            whole = self.length // C
            steps = torch.unflatten(out, 0, (-1, self.sequences))
            body = torch.unflatten(x[:, : whole * C], 1, (whole, C))
            steps[:whole].copy_(body.transpose(0, 1).transpose(2, 3).unsqueeze(3))
            left = self.length - whole * C
            if left:
                steps[whole, :, :, :, :left].copy_(x[:, whole * C :].transpose(1, 2).unsqueeze(2))
                steps[whole, :, :, :, left:].zero_()
        return out.view(-1, C, *rest)

    def scatter(self, x_M: Tensor, like: Tensor, heads: int | None = None) -> Tensor:
        """`[M, C, ...]` back to tokens in the dtype of `like`, zeros outside sequences.

        Groups of heads are summed down to the head count of `like`, or kept if `heads` says so.
        """
        C, h, rest = self.chunk, heads or like.shape[2], x_M.shape[2:]
        x = x_M.view(self.tiles // self.heads, h, self.heads // h, C, *rest)
        x = (x.sum(2) if h < self.heads else x[:, :, 0]).transpose(1, 2)
        if self.tokens_PC is not None and self.valid_PC is not None:
            out = like.new_zeros(*like.shape[:2], h, *rest)
            out[0].index_copy_(0, self.tokens_PC[self.valid_PC], x[self.valid_PC].to(out.dtype))
            return out
        out = like.new_empty(*like.shape[:2], h, *rest)
        whole = self.length // C
        steps = torch.unflatten(x, 0, (-(-self.length // C), self.sequences))
        body = torch.unflatten(out[:, : whole * C], 1, (whole, C))
        body.copy_(steps[:whole].transpose(0, 1))
        if whole * C < self.length:
            out[:, whole * C :].copy_(steps[whole, :, : self.length - whole * C])
        return out

    def states(self, state: Tensor | None, q_MCK: Tensor, v_MCV: Tensor) -> Tensor:
        """Room for the initial states and for the state after each tile; the initial ones are filled in."""
        rows = self.sequences * self.heads
        out = q_MCK.new_empty(rows + self.tiles, q_MCK.shape[2], v_MCV.shape[2])
        if state is None:
            out[:rows].zero_()
        else:
            out[:rows].copy_(self.ranked(state))
        return out

    def incoming(self, states: Tensor) -> Tensor:
        """The state that enters each tile."""
        if self.tokens_PC is None:
            return states[: self.tiles]
        return torch.cat([states[enter] for _, enter, _ in self.walk] or [states[:0]])

    def final(self, states: Tensor) -> Tensor:
        """The states after the last token of each sequence, `[N, H, K, V]`."""
        states = torch.unflatten(states, 0, (-1, self.heads))
        if self.last_N is None:
            return states[-self.sequences :].clone()
        return states.index_select(0, self.last_N)

    def ranked(self, state: Tensor) -> Tensor:
        """A copy of `[N, H, K, V]` in the order of the walk, heads folded in."""
        order = self.order_N
        copy = state.clone(memory_format=torch.contiguous_format) if order is None else state[order]
        return copy.flatten(0, 1)

    def unranked(self, state: Tensor) -> Tensor:
        """Undo `ranked`."""
        state = torch.unflatten(state, 0, (-1, self.heads))
        if self.order_N is None:
            return state
        return torch.empty_like(state).index_copy_(0, self.order_N, state)

    def padded(self, x_M: Tensor, state: bool = False) -> Tensor:
        """Bring a kept tensor to the size that follows from the shapes alone."""
        size = self.bound + self.sequences * self.heads * state
        if x_M.shape[0] == size:
            return x_M
        return torch.cat([x_M, x_M.new_zeros(size - x_M.shape[0], *x_M.shape[1:])])


def tile_bound(batch: int, length: int, heads: int, cu_seqlens: Tensor | None, chunk: int) -> int:
    """No cut of these shapes has more tiles."""
    if cu_seqlens is None:
        return batch * -(-length // chunk) * heads
    return (length // chunk + cu_seqlens.shape[0] - 1) * heads


def tiling_of(v: Tensor, heads: int, cu_seqlens: Tensor | None, chunk: int) -> Tiling:
    """Cut the rows of a dense call, or the sequences of a packed one, into chunks."""
    batch, length = v.shape[:2]
    bound = tile_bound(batch, length, heads, cu_seqlens, chunk)
    if cu_seqlens is None:
        active = [batch] * -(-length // chunk)
        tokens = valid = order = last = None
        sequences = batch
    else:
        sequences = cu_seqlens.shape[0] - 1
        chunks_N, order = (-(cu_seqlens.diff() // -chunk)).sort(descending=True, stable=True)
        steps = int(chunks_N[0])
        active_J = (chunks_N > torch.arange(steps, device=v.device)[:, None]).sum(1)
        active = active_J.tolist()
        before_J = active_J.cumsum(0) - active_J
        step_P = torch.arange(steps, device=v.device).repeat_interleave(active_J)
        rank_P = torch.arange(sum(active), device=v.device) - before_J[step_P]
        start_P = cu_seqlens[:-1][order][rank_P] + step_P * chunk
        tokens = start_P[:, None] + torch.arange(chunk, device=v.device)
        valid = tokens < cu_seqlens[1:][order][rank_P][:, None]
        tokens = tokens.clamp(max=max(length - 1, 0))
        rank_N = torch.arange(sequences, device=v.device)
        left_N = torch.cat([before_J, before_J.new_zeros(1)])[chunks_N - 1] + sequences
        last = torch.empty_like(order).index_copy_(0, order, rank_N + left_N * (chunks_N > 0))
    walk = []
    first, entered = 0, 0
    for count in active:
        m = slice(first * heads, (first + count) * heads)
        leave = slice(sequences * heads + m.start, sequences * heads + m.stop)
        walk.append((m, slice(entered * heads, (entered + count) * heads), leave))
        first, entered = first + count, sequences + first
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return Tiling(
        chunk, length, heads, dtype, walk, sequences, first * heads, bound, tokens, valid, order, last
    )
