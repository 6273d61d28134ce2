"""What a recurrence has to move at least, what its kernels moved, and the limits of their ratio.

All figures are per token and head of the state, without what a sequence costs once: states at its ends, borders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

from archc.kernels.counting.counted import Counted
from archc.tiles.costs import count
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import SEGMENT
from archc.tiles.triton_channel_reverse import channel_kernels
from archc.tiles.triton_source import walk_form
from archc.tiles.triton_spans import Ahead
from archc.tiles.triton_spans_back import ahead_by_channel, ahead_by_head, ahead_by_value
from archc.tiles.triton_walk_again import Again
from archc.tiles.triton_walk_back import Back
from archc.tiles.views import arguments, kernel_arguments

Schedule = Literal["walk", "chunks"]

REQUESTED = 2.0  # requested bytes over distinct ones
FLOP = 1.3  # executed FLOP over those of the class's chunk form

# (decay along, erase) -> schedule -> distinct bytes over the minimum, forward and backward. K = V = 128, two bytes.
_LIMITS: dict[tuple[str, bool], dict[Schedule, tuple[float, float]]] = {
    ("head", False): {"walk": (1.1, 1.8), "chunks": (2.6, 2.8)},
    ("key", False): {"walk": (2.0, 2.2), "chunks": (3.1, 4.0)},
    ("head", True): {"walk": (1.8, 2.4), "chunks": (3.3, 3.6)},
    ("key", True): {"walk": (2.3, 2.8), "chunks": (3.5, 4.5)},
}


class Buffer(Protocol):
    """A tensor, as far as its size in memory matters."""

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that kernels may move over the minimum, and keep for the backward in bytes."""

    forward: float
    backward: float
    saved: float


@dataclass(frozen=True, slots=True)
class Minimum:
    """Bytes of any schedule. forward: inputs and o; backward: inputs, do and the inputs' gradients."""

    forward: float
    backward: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What kernels and other operations did. saved: bytes kept for the backward besides inputs and outputs."""

    distinct: float
    requested: float
    flop: float
    exponentials: float
    saved: float


def limits(kind: RecurrenceKind, schedule: Schedule) -> Limits:
    """The limits of a class: those of scalar decay where there is none, of decay along K where it is along V."""
    core = kind.core()
    along = "key" if core.decay in ("key", "value") else "head"
    forward, backward = _LIMITS[along, core.erase != "none"][schedule]
    return Limits(forward, backward, 600.0 if along == "key" else 400.0)


def minimum(
    kind: RecurrenceKind,
    K: int,
    V: int,
    heads: Mapping[str, int] | None = None,
    itemsize: int = 2,
    itemsizes: Mapping[str, int] | None = None,
) -> Minimum:
    """Bytes of the operation's own inputs once and outputs once.

    heads: those of each argument by name where they differ ("q", "k", "v", "decay", "beta", "w", "r"); the state
    has the most. itemsize: bytes of an element; a decay has four. itemsizes: of arguments where that differs.
    A `rate` without tokens costs nothing a token.
    """
    heads, itemsizes = heads or {}, {"decay": 4, **(itemsizes or {})}
    found = arguments(kind)
    most = max(heads.values(), default=1)
    sizes = {"B": 1, "T": 1, "H": 1, "K": K, "V": V}
    inputs = sum(
        prod(sizes[axis] for axis in argument.axes)
        * itemsizes.get(argument.name, itemsize)
        * heads.get(argument.name, most)
        / most
        for argument in found
        if argument.per_token
    )
    output = V * itemsizes.get("o", itemsizes.get("v", itemsize))
    return Minimum(inputs + output, 2 * inputs + output)


def planned(
    kind: RecurrenceKind,
    K: int,
    V: int,
    itemsize: int = 2,
    segment: int = SEGMENT,
    span: int | None = None,
    halves: bool = False,
) -> dict[str, float]:
    """Bytes of each kernel of a class's forward: every tensor once; and a state for each `segment` chunks.

    span: chunks that are walked beside others, of a sequence that has many such; None for one that is walked whole.
    halves: of a walk with its state in two halves.
    With as many value columns in a program as there are, the counter finds exactly this.
    """
    form = walk_form(kind, halves)
    C = kind.chunk
    sizes = {"B": 1, "T": 1, "H": 1, "K": K, "V": V}
    size = {
        argument.name: prod(sizes[axis] for axis in argument.axes)
        * (4 if argument.name in ("decay", "weight", "floor") else itemsize)
        for argument in kernel_arguments(kind)
    }
    between = {"CC": itemsize * C, "CK": itemsize * K, "CV": itemsize * V, "K": 4 * K / C}
    buffers = {name: between[axes] for name, axes in form.buffers.items()}
    results = itemsize * V * (2 if form.solved else 1) + 4 * K * V / (segment * C)
    if form.normaliser.tensors:  # what divides each token, and its vector beside the states
        results += 4 + 4 * K / (segment * C)
    # Where `prepare` has decayed the queries, the walk is handed q for its type only.
    unread = {"q"} if {"q_in", "q_before"} & buffers.keys() else set()
    read = [name for name in form.walk.arguments if name not in unread]
    walk = sum((size | buffers)[name] for name in read) + results
    found = {"walk": walk}
    if form.prepare is not None:
        found["prepare"] = sum((size | buffers)[name] for name in form.prepare.arguments)
    return found if span is None else _in_spans(found, "walk", form.ahead, size | buffers, K, V, span * C)


def _in_spans(
    found: Mapping[str, float],
    walk: str,
    ahead: Ahead,
    size: Mapping[str, float],
    K: int,
    V: int,
    tokens: int,
) -> dict[str, float]:
    """The same where spans of so many tokens are walked beside each other.

    There is a state at the start of each; and what it does to one, by its decay or as a matrix.
    """
    vector = K if ahead.beside else 0  # of a normaliser, which goes with the state
    start, decays = 4 * (K * V + vector) / tokens, {"": 0, "1": 1, "K": K, "V": V}[ahead.sums]
    between = 4 * (K * V + vector + (K * K if ahead.solved else decays)) / tokens
    return {
        **found,
        # Which has the vector in memory, and reads it there too.
        f"{walk}_ahead": sum(size[name] for name in ahead.arguments) + between + 4 * vector / tokens,
        "carry": between + start,
        walk: found[walk] + start,
    }


def planned_by_head(
    kind: RecurrenceKind,
    K: int,
    V: int,
    columns: int,
    channels: int,
    itemsize: int = 2,
    segment: int = SEGMENT,
    span: int | None = None,
) -> dict[str, float]:
    """Bytes of each kernel of the backward of a class with a decay per head or none, and of the sums after it.

    columns, channels: of a program of `walk_back` and of `walk_again`. A tensor counts once, or once for each block.
    span: as of `planned`.
    """
    C, blocks, parts = kind.chunk, -(-V // columns), -(-K // channels)
    back = Back(kind, forward(kind)).view()
    again = Again(kind, forward(kind), several=blocks > 1).view()
    size: dict[str, int] = dict.fromkeys(
        ("q", "k", "w", "r", "dq", "dk", "dw", "dr", "dk_write", "dw_write"), itemsize * K
    )
    size |= dict.fromkeys(("v", "do", "U", "dv", "dE"), itemsize * V)
    size |= {"X": itemsize * C, "beta": itemsize, **dict.fromkeys(("decay", "written", "ddecay", "dbeta"), 4)}
    copies = {name: blocks for name in back.made if name not in ("dv", "dE")}
    copies |= dict.fromkeys(("ddecay", "dbeta"), parts)
    summed = [name for name, count in copies.items() if count > 1 and name in (*back.made, *again.made)]
    summed = [name for name in summed if not name.endswith("_write")]  # which `walk_again` adds up
    read_once = {"written": 1}
    state = 4 * K * V / (segment * C)
    found = {
        "walk_back": sum(size[name] * copies.get(name, 1) for name in (*back.loaded, *back.made)) + state,
        "walk_again": sum(
            size[name] * {**copies, **read_once}.get(name, 1) for name in (*again.loaded, *again.made)
        )
        + state * (2 if kind.decay == "head" else 1),
        "sums": sum(size[name] * (copies[name] + 1) for name in summed)
        + (4 + itemsize if "dbeta" in again.made else 0),  # which is narrowed
    }
    return found if span is None else _in_spans(found, "walk_back", ahead_by_head(kind), size, K, V, span * C)


def planned_by_channel(
    kind: RecurrenceKind,
    K: int,
    V: int,
    itemsize: int = 2,
    segment: int = SEGMENT,
    span: int | None = None,
) -> dict[str, float]:
    """Bytes of each kernel of the backward of a class with a decay along K, likewise: with one block of V and of K."""
    form, C = walk_form(kind), kind.chunk
    back, again = channel_kernels(kind)
    letters = {"CC": itemsize * C, "CK": itemsize * K, "CV": itemsize * V, "K": 4 * K / C}
    size = {name: letters[axes] for name, axes in form.buffers.items()}
    size |= dict.fromkeys(back.scores, letters["CC"])
    size |= dict.fromkeys(("v", "do", "U", "dv", "dE"), letters["CV"])
    size |= dict.fromkeys(("q", "k", "w", "r", "dq", "dk", "dw", "dr"), letters["CK"])
    size |= dict.fromkeys(("dk_state", "dw_state"), letters["CK"])
    size |= {"decay": 4 * K, "ddecay": 4 * K, "beta": itemsize, "dbeta": 4}
    once = (4 * K * V + 4 * K) / (
        segment * C
    )  # the state of a segment, and what its decays are anchored with
    found = {
        "walk_back": sum(size[name] for name in (*back.loaded, *back.made)) + once,
        "walk_again": sum(size[name] for name in (*again.loaded, *again.made)) + once,
    }
    return (
        found if span is None else _in_spans(found, "walk_back", ahead_by_channel(kind), size, K, V, span * C)
    )


def planned_by_value(
    kind: RecurrenceKind,
    K: int,
    V: int,
    itemsize: int = 2,
    segment: int = SEGMENT,
    span: int | None = None,
) -> dict[str, float]:
    """Bytes of each kernel of the backward of a class with a decay along V, likewise: with one block of V."""
    C = kind.chunk
    rows, value, pairs = itemsize * K, itemsize * V, itemsize * C  # q, k and their like; v; scores
    inputs = 2 * rows + 2 * value + 4 * V  # q, k, v, do and the decay
    # The state of a segment, and what its decays are anchored with.
    once = (4 * K * V + 4 * V) / (segment * C)
    found = {
        "prepare_back": inputs + pairs + value + 4 * V,
        "walk_back": inputs + pairs + rows + value + once,
        "walk_again": inputs + pairs + 2 * value + 4 * V + rows + value + 4 * V + once,
    }
    size = {"q": rows, "do": value, "decay": 4 * V}
    return (
        found if span is None else _in_spans(found, "walk_back", ahead_by_value(kind), size, K, V, span * C)
    )


def spent(
    short: Counted,
    long: Counted,
    tokens_and_heads: int,
    saved: tuple[Sequence[Buffer], Sequence[Buffer]] = ((), ()),
) -> Spent:
    """The difference of two runs, of which the longer one has so many more tokens times heads.

    What a sequence costs once is the same in both and vanishes. The difference in tokens should be a multiple of
    what a state is kept for, so that the states in between count as they do in a long sequence.
    saved: the tensors that each run kept for the backward.
    """
    kept = sum(tensor.nbytes for tensor in saved[1]) - sum(tensor.nbytes for tensor in saved[0])
    return Spent(
        (long.distinct - short.distinct) / tokens_and_heads,
        (long.requested - short.requested) / tokens_and_heads,
        (long.flop - short.flop) / tokens_and_heads,
        (long.exponentials - short.exponentials) / tokens_and_heads,
        kept / tokens_and_heads,
    )


def exceeded(
    kind: RecurrenceKind,
    K: int,
    V: int,
    forward: Spent | None,
    backward: Spent | None,
    schedule: Schedule = "walk",
    least: Minimum | None = None,
) -> list[str]:
    """Which limits kernels miss, one line each; empty if none."""
    least = least or minimum(kind, K, V)
    allowed = limits(kind, schedule)
    costs = count(kind, K, V)
    found = []
    for name, done, bytes_, ratio, flop in (
        ("forward", forward, least.forward, allowed.forward, costs.forward.flops),
        ("backward", backward, least.backward, allowed.backward, costs.backward.flops),
    ):
        if done is None:
            continue
        for what, has, most in (
            ("distinct bytes over the minimum", done.distinct / bytes_, ratio),
            ("requested bytes over distinct", done.requested / done.distinct, REQUESTED),
            ("FLOP over the chunk form's", done.flop / flop, FLOP),
            ("saved bytes", done.saved, allowed.saved),
        ):
            if has > most:
                found.append(f"{name}: {what} {has:.2f}, at most {most:.2f}")
    return found
