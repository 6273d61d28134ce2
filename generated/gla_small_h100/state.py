"""What a model remembers between calls: one row a sequence in every tensor, and the sequences' lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .place import Layout, Place, StateError


class Entry(NamedTuple):
    """One tensor of memory of an operation: `[N, *shape]`, or `[N, slots, *shape]` where tokens are kept.

    `dtype` None is the model's; float32 is float64 in a float64 model. `grows`: a slot for each of the
    state's `max_length` tokens, or for every `every` of them; `ring`: at most so many.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    grows: bool = False
    ring: int | None = None
    fill: float = 0.0
    every: int = 1

    def tensor(self, rows: int, max_length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The start value for `rows` sequences."""
        if self.dtype is not None:
            dtype = torch.promote_types(self.dtype, dtype) if self.dtype.is_floating_point else self.dtype
        slots: tuple[int, ...] = ()
        if self.grows:
            slots = (-(-max_length // self.every),)
        elif self.ring is not None:
            slots = (min(self.ring, max_length),)
        return torch.full((rows, *slots, *self.shape), self.fill, dtype=dtype, device=device)


class State:
    """The memory of N sequences.

    `memory`: full name -> tensor `[N, ...]`. `length [N]` int64: tokens seen. `longest`: host integer, no
    sequence is longer. `uniform`: host boolean, all lengths are equal. `max_length`: tokens that the full
    caches hold; `limited_by` names one of them, or is None where nothing grows with the length.
    """

    __slots__ = ("length", "limited_by", "longest", "max_length", "memory", "uniform")

    def __init__(
        self,
        memory: dict[str, Tensor],
        length: Tensor,
        max_length: int,
        limited_by: str | None = None,
        longest: int = 0,
        uniform: bool = True,
    ) -> None:
        self.memory = memory
        self.length = length
        self.max_length = max_length
        self.limited_by = limited_by
        self.longest = longest
        self.uniform = uniform

    @classmethod
    def empty(
        cls,
        memory: dict[str, Tensor],
        batch_size: int,
        max_length: int,
        device: torch.device | str | None = None,
        limited_by: str | None = None,
    ) -> State:
        """A state of sequences that have seen no token; `memory` holds the operations' start values."""
        length = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return cls(memory, length, max_length, limited_by)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, `length` among them: what to count, save or compare."""
        return {"length": self.length, **self.memory}

    def select(self, rows: Tensor | Sequence[int]) -> State:
        """The state of the given sequences, in the given order; one may occur several times."""
        index = torch.as_tensor(rows, device=self.length.device)
        return self._map(lambda tensor: tensor[index])

    def clone(self) -> State:
        """A state with storage of its own."""
        return self._map(torch.Tensor.clone)

    def detach(self) -> State:
        """The same values, cut from the graph that computed them."""
        return self._map(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> State:
        """The state on another device. Dtypes stay: each entry's is part of its operation's definition."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> State:
        memory = {name: function(tensor) for name, tensor in self.memory.items()}
        return State(
            memory, function(self.length), self.max_length, self.limited_by, self.longest, self.uniform
        )


def open_place(
    layout: Layout,
    state: State | None = None,
    form: str = "auto",
    return_state: bool = False,
    patterns: tuple[str, ...] = (),
) -> Place:
    """The place at the root of one call.

    Without `return_state` the state is written in place, which autograd cannot follow: StateError under grad.
    """
    if state is None:
        return Place(layout, form=form, patterns=patterns)
    if return_state:
        return Place(layout, dict(state.memory), form=form, patterns=patterns)
    if torch.is_grad_enabled():
        raise StateError(
            "a state is written in place only when grad is off: call under torch.no_grad(), "
            "or pass return_state=True for a new state"
        )
    return Place(layout, state.memory, form=form, in_place=True, patterns=patterns)


def close_place(place: Place, state: State) -> State:
    """Count the call's tokens: in `state` itself when it is held in place, else in a new state."""
    layout = place.layout
    assert place.memory is not None
    new = layout.longest_new if layout.cu_seqlens is None else layout.cu_seqlens.diff()
    if place.in_place:
        state.length.add_(new)
        state.longest = layout.longest
        state.uniform = layout.uniform
        return state
    length = state.length + new
    return State(place.memory, length, state.max_length, state.limited_by, layout.longest, layout.uniform)
