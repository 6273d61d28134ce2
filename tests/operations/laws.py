"""Ways to cut sequences into calls, all of which must give what the whole sequence gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# An operation under test: inputs by name, each [B, T, ...], and a place; its outputs, each [B, T, ...].
Operation = Callable[[dict[str, Tensor], Any], Tensor]


def alone(package: Any, operation: Operation, sequences: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Each sequence in a call of its own, without a state."""
    outputs = []
    for inputs in sequences:
        batch = {name: value.unsqueeze(0) for name, value in inputs.items()}
        layout = package.place.dense_layout(next(iter(batch.values())))
        outputs.append(operation(batch, package.state.open_place(layout))[0])
    return outputs


def packed(
    package: Any,
    operation: Operation,
    sequences: Sequence[dict[str, Tensor]],
    state: Any = None,
    tail: int = 0,
    return_state: bool = False,
) -> tuple[list[Tensor], Any]:
    """All sequences in one row, followed by `tail` tokens of noise that belong to none."""
    lengths = [len(next(iter(inputs.values()))) for inputs in sequences]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    row = {}
    for name in sequences[0]:
        parts = [inputs[name] for inputs in sequences]
        parts.append(torch.randn(tail, *parts[0].shape[1:], dtype=parts[0].dtype))
        row[name] = torch.cat(parts).unsqueeze(0)
    layout = package.place.packed_layout(cu_seqlens, sum(lengths) + tail, state)
    place = package.state.open_place(layout, state, return_state=return_state)
    output = operation(row, place)
    if state is not None:
        state = package.state.close_place(place, state)
    return list(output[0, : sum(lengths)].split(lengths)), state


def in_pieces(
    package: Any,
    operation: Operation,
    inputs: dict[str, Tensor],
    state: Any,
    pieces: Sequence[int],
    return_state: bool = False,
) -> tuple[Tensor, Any]:
    """A dense batch given a few tokens at a time."""
    outputs, start = [], 0
    for piece in pieces:
        part = {name: value[:, start : start + piece] for name, value in inputs.items()}
        layout = package.place.dense_layout(next(iter(part.values())), state)
        place = package.state.open_place(layout, state, return_state=return_state)
        outputs.append(operation(part, place))
        state = package.state.close_place(place, state)
        start += piece
    return torch.cat(outputs, 1), state


def cut(inputs: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Tokens `start .. stop` of one sequence."""
    return {name: value[start:stop] for name, value in inputs.items()}
