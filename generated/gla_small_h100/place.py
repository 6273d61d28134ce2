"""Where the tokens of a call lie: which sequence, which position, and the memory of each operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .state import State


class StateError(RuntimeError):
    """A state that does not fit the call: full, of another batch size, or written under grad."""


class Layout(NamedTuple):
    """The sequences of one call. N sequences: the rows of a dense call, or the spans of a packed one."""

    cu_seqlens: Tensor | None  # [N + 1] int64, packed calls only; spans may be empty
    positions_BT: Tensor  # int64: the token's place in its sequence, tokens in the state included
    start_N: Tensor | None  # int64: tokens already in the state; None without a state
    longest: int  # no sequence is longer than this after the call
    uniform: bool  # all sequences have the same length, state included
    sequence_T: Tensor | None = None  # int64, packed calls only: the token's sequence; N after the last one
    longest_new: int = 0  # no sequence gets more tokens than this in the call
    fresh: bool = True  # no sequence has tokens in the state


class Place:
    """What an operation knows of its surroundings: the layout, its memory, its name, the forced form.

    `memory` maps full names to tensors with one row a sequence, or is None. `in_place` says whether writes go
    to the stored tensors or replace the entries. `memo` lives for one call and is shared by all layers.
    """

    __slots__ = ("captured", "form", "in_place", "layout", "memo", "memory", "patterns", "prefix")

    def __init__(
        self,
        layout: Layout,
        memory: dict[str, Tensor] | None = None,
        prefix: str = "",
        form: str = "auto",
        in_place: bool = False,
        memo: dict[Any, Any] | None = None,
        patterns: tuple[str, ...] = (),
        captured: dict[str, Tensor] | None = None,
    ) -> None:
        self.layout = layout
        self.memory = memory
        self.prefix = prefix
        self.form = form
        self.in_place = in_place
        self.memo = {} if memo is None else memo
        self.patterns = patterns
        self.captured = {} if captured is None else captured

    def at(self, name: str) -> Place:
        """The same place one level further in: names are prefixed with `name.`."""
        return Place(
            self.layout,
            self.memory,
            f"{self.prefix}{name}.",
            self.form,
            self.in_place,
            self.memo,
            self.patterns,
            self.captured,
        )

    def read(self, key: str) -> Tensor | None:
        """The stored tensor, or None in a call without a state. KeyError where the state lacks the entry."""
        return None if self.memory is None else self.memory[self.prefix + key]

    def write(self, key: str, value: Tensor) -> None:
        """Store a whole entry: into the same storage if the state is held in place, else as a new entry."""
        if self.memory is None:
            return
        stored = self.memory[self.prefix + key]
        if value is stored:
            return
        if self.in_place:
            stored.copy_(value)
        else:
            self.memory[self.prefix + key] = value.to(stored.dtype)

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A value that is the same in every layer, computed at its first use in a call."""
        if name not in self.memo:
            self.memo[name] = make()
        found: Tensor = self.memo[name]
        return found

    def export(self, name: str, value: Tensor, keeper: Place | None = None) -> None:
        """Publish a value for later layers: the first one stays, the previous one is replaced.

        `keeper`: the place of the layer that it came from, where that is not this one.
        """
        keeper = self if keeper is None else keeper
        self.memo.setdefault(("first", name), value)
        self.memo.setdefault(("keeper", "first", name), keeper)
        self.memo["previous", name] = value
        self.memo["keeper", "previous", name] = keeper

    def keeper(self, which: str, name: str) -> Place:
        """The place of the layer that computed an exported value, and keeps it of earlier tokens."""
        found: Place = self.memo["keeper", which, name]
        return found

    @property
    def wants_losses(self) -> bool:
        """Whether this call is for a loss."""
        return "losses" in self.memo

    def update(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Say what a buffer becomes after this training step."""
        self.memo.setdefault("updates", []).append((module, name, value.detach()))

    def loss(self, name: str, value: Tensor) -> None:
        """Add an auxiliary loss of this layer."""
        self.memo["losses"][self.prefix + name] = value

    def keep_all(self, variables: Mapping[str, object]) -> None:
        """Record the variables that a pattern matches, named without their axes: `q_BTHK` is `q`."""
        for variable, value in variables.items():
            if isinstance(value, Tensor):
                name, _, axes = variable.rpartition("_")
                self.keep(name if name and axes.isupper() else variable, value)

    def keep(self, name: str, value: Tensor) -> Tensor:
        """Return `value`; record it if a pattern of `capture=` matches its full name."""
        if self.patterns:
            full = self.prefix + name
            if any(fnmatchcase(full, pattern) for pattern in self.patterns):
                self.captured[full] = value
        return value


class Sites:
    """Counts the places at which each body is used, while a model is built."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def take(self, body: str) -> int:
        """The number of this place, from 0."""
        self._counts[body] = self._counts.get(body, -1) + 1
        return self._counts[body]


class Padding(NamedTuple):
    """How a padded batch becomes one packed row and back. All shapes depend on `[B, T]` alone."""

    order: Tensor  # [B * T] int64: the tokens to keep, row by row, then the masked ones
    inverse: Tensor  # [B * T] int64: where each token of the batch went
    cu_seqlens: Tensor  # [B + 1] int64

    def pack(self, x_BT: Tensor) -> Tensor:
        """`[B, T, ...]` -> `[1, B * T, ...]`."""
        return x_BT.flatten(0, 1)[self.order].unsqueeze(0)

    def unpack(self, x_packed: Tensor) -> Tensor:
        """`[1, B * T, ...]` -> `[B, T, ...]`; masked places hold finite values without meaning."""
        rows = self.cu_seqlens.shape[0] - 1
        length = self.order.shape[0] // rows
        return x_packed[0][self.inverse].view(rows, length, *x_packed.shape[2:])


def pack_padding(mask_BT: Tensor) -> Padding:
    """Order the tokens so that the kept ones (nonzero in the mask) stand first, row by row.

    Padding may stand left or right of a row's tokens. Raises ValueError for a hole between two kept tokens;
    under `torch.compile` this is not checked.
    """
    keep = mask_BT.bool()
    if not torch.compiler.is_compiling():
        rises = (keep[:, 1:] & ~keep[:, :-1]).sum(1) + keep[:, :1].sum(1)
        holes = (rises > 1).nonzero()
        if holes.numel():
            row = int(holes[0])
            raise ValueError(f"attention_mask has a hole in row {row}: kept tokens must be contiguous")
    order = torch.argsort((~keep).flatten().to(torch.uint8), stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    cu_seqlens = torch.nn.functional.pad(keep.sum(1).cumsum(0), (1, 0))
    return Padding(order, inverse, cu_seqlens)


def dense_layout(tokens: Tensor, state: State | None = None) -> Layout:
    """The layout of `tokens [B, T, ...]` where each row is one sequence."""
    batch, length = tokens.shape[:2]
    if state is None:
        positions = torch.arange(length, device=tokens.device).unsqueeze(0).expand(batch, length)
        return Layout(None, positions, None, length, True, None, length, True)
    start = state.length
    _check_rows(state, batch)
    positions = start.unsqueeze(1)
    if length != 1:
        positions = positions + torch.arange(length, device=tokens.device)
    if _capturing(tokens):
        return Layout(None, positions, start, state.max_length, False, None, length, False)
    longest = _fits(state, state.longest + length, length)
    return Layout(None, positions, start, longest, state.uniform, None, length, state.longest == 0)


def packed_layout(
    cu_seqlens: Tensor, total: int, state: State | None = None, longest_new: int | None = None
) -> Layout:
    """The layout of one row of `total` tokens in which `cu_seqlens [N + 1]` marks N sequences.

    `longest_new` bounds the tokens of one sequence; without it the lengths are read back (once a call, not
    under `torch.compile`) and checked: ValueError for borders that fall, do not start at 0 or pass `total`.
    """
    cu_seqlens = cu_seqlens.long()
    rows = cu_seqlens.shape[0] - 1
    if rows < 1:
        raise ValueError("cu_seqlens needs at least two entries")
    compiling = torch.compiler.is_compiling()
    if not compiling and (longest_new is None or cu_seqlens.device.type == "cpu"):
        borders = cu_seqlens.tolist()
        lengths = [after - before for before, after in zip(borders, borders[1:], strict=False)]
        if borders[0] != 0 or min(lengths) < 0 or borders[-1] > total:
            raise ValueError(f"cu_seqlens must rise from 0 to at most {total}, got {borders}")
        longest_new = max(lengths)
    elif longest_new is None:
        longest_new = total
    token = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
    row = sequence.clamp(max=rows - 1)
    offset = cu_seqlens[:-1]
    if state is None:
        positions = (token - offset[row]).unsqueeze(0)
        return Layout(cu_seqlens, positions, None, longest_new, False, sequence, longest_new, True)
    _check_rows(state, rows)
    longest = _fits(state, state.longest + longest_new, cu_seqlens.diff())
    positions = (token + (state.length - offset)[row]).unsqueeze(0)
    return Layout(
        cu_seqlens, positions, state.length, longest, False, sequence, longest_new, state.longest == 0
    )


def _check_rows(state: State, rows: int) -> None:
    if state.length.shape[0] != rows:
        raise StateError(f"the state holds {state.length.shape[0]} sequences, the call has {rows}")


def _fits(state: State, bound: int, new: int | Tensor) -> int:
    """A bound of the lengths after the call. StateError, before any write, for too small a cache."""
    limit = state.max_length
    if state.limited_by is None or bound <= limit:
        return bound
    if not state.uniform or isinstance(new, Tensor):
        if torch.compiler.is_compiling():
            fits = (state.length + new).max() <= limit
            torch._assert_async(fits, f"{state.limited_by} holds {limit} tokens")
            return limit
        bound = int((state.length + new).max())
    if bound > limit:
        raise StateError(
            f"{state.limited_by} holds {limit} tokens, this call would bring a sequence to {bound}: "
            f"give init_state a larger max_length"
        )
    return bound


def _capturing(tokens: Tensor) -> bool:
    """A CUDA graph is replayed at other lengths: no host integer but max_length may enter it."""
    return tokens.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()
