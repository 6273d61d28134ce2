"""A weighted sum of bodies, each of which sees only the tokens that are sent to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .place import Layout, Place


def mixture(bodies: nn.ModuleList, x: Tensor, weights: Tensor, place: Place, *extra: Any) -> Tensor:
    """`sum_m weights_m * bodies_m(x)` over the tokens whose weight is present: `x [B, T, D] -> [B, T, ...]`.

    `weights [B, T, M]`: a weight of 0 or minus infinity is absent. Each body sees its tokens as packed sequences, in
    order; its memory counts them alone (`<place><m>.length`). Tokens that no body sees give 0.
    """
    flat_x, flat_w = x.flatten(0, 1), weights.flatten(0, 1)
    sequence, rows = _sequences(x, place.layout)
    total: Tensor | None = None
    for m, body in enumerate(bodies):
        inner = place.at(str(m))
        weight = flat_w[:, m]
        chosen = (weight != 0) & (weight != float("-inf")) & (sequence < rows)
        order = _order(chosen, sequence, rows)
        if order.shape[0] == 0 and inner.memory is None and total is not None:
            continue  # nothing is sent here, and there is nothing to remember
        layout, length = _layout(sequence[order], rows, chosen[order], inner)
        inner.layout = layout
        # What is kept for the call is the layers' own, but for what hangs on the places of the tokens.
        inner.memo = {
            name: place.memo[name] for name in ("model", "shared", "losses", "updates") if name in place.memo
        }
        if "embedding" in place.memo:
            inner.memo["embedding"] = place.memo["embedding"].flatten(0, 1)[order].unsqueeze(0)
        result = body(flat_x[order].unsqueeze(0), inner, *extra)[0]
        scale = weight[order].masked_fill(~chosen[order], 0).to(result.dtype)
        share = result * scale.view(-1, *([1] * (result.dim() - 1)))
        if total is None:
            total = result.new_zeros(flat_x.shape[0], *result.shape[1:])
        total = total.index_add(0, order, share)
        if length is not None:
            inner.write("length", length)
    if total is None:
        raise ValueError("a mixture needs at least one body")
    return torch.unflatten(total, 0, x.shape[:2])


def _sequences(x: Tensor, layout: Layout) -> tuple[Tensor, int]:
    """The sequence of each token of the flattened batch, and how many sequences there are."""
    if layout.cu_seqlens is not None:
        assert layout.sequence_T is not None
        return layout.sequence_T, layout.cu_seqlens.shape[0] - 1
    rows, length = x.shape[:2]
    return torch.arange(rows, device=x.device).repeat_interleave(length), rows


def _order(chosen: Tensor, sequence: Tensor, rows: int) -> Tensor:
    """The chosen tokens, sequence by sequence; under `torch.compile` the others follow, so that shapes stay static."""
    if torch.compiler.is_compiling():
        return torch.argsort(torch.where(chosen, sequence, rows), stable=True)
    return chosen.nonzero()[:, 0]


def _layout(sequence: Tensor, rows: int, chosen: Tensor, inner: Place) -> tuple[Layout, Tensor | None]:
    """The layout of a body's tokens, and their number in each sequence after the call."""
    counts = torch.zeros(rows + 1, dtype=torch.int64, device=sequence.device)
    counts = counts.index_add(0, torch.where(chosen, sequence, rows), torch.ones_like(sequence))[:rows]
    borders = nn.functional.pad(counts.cumsum(0), (1, 0))
    counted = inner.memory is not None and f"{inner.prefix}length" in inner.memory
    start = inner.read("length") if counted else None
    token = torch.arange(sequence.shape[0], device=sequence.device)
    row = sequence.clamp(max=rows - 1)
    positions = token - borders[:-1][row]
    if start is not None:
        positions = positions + start[row]
    owner = torch.where(chosen, sequence, rows)
    new = sequence.shape[0] if torch.compiler.is_compiling() or sequence.is_cuda else int(counts.max())
    longest = new if start is None else max(inner.layout.longest, new)
    layout = Layout(borders, positions.unsqueeze(0), start, longest, False, owner, new, start is None)
    return layout, None if start is None else start + counts
