"""Print the walk back that finds what a span of tokens does to dS, for each of the kernels that carry it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Step, leading_to
from archc.tiles.reverse import reverse
from archc.tiles.triton_channel_reverse import ChannelBack
from archc.tiles.triton_gradients import Gradients, View
from archc.tiles.triton_source import INPUTS, constants_of, open_lines, values_of
from archc.tiles.triton_spans import Ahead, Vector, ahead_of
from archc.tiles.triton_walk_back import Back


class BackAhead(Back):
    """The lines of `walk_back` that its next dS needs, with a decay per head or none."""

    def __init__(self, kind: RecurrenceKind) -> None:
        super().__init__(kind, forward(kind, weighted=kind.beside and kind.normalize == "max"))
        self.steps = tuple(leading_to("dS", self.steps))

    def closing(self) -> list[str]:
        """Each block of value columns has its own part of the vector's gradient."""
        return self.past_vector("vector_ends", "part") if self.kind.beside else []

    def view(self) -> View:
        """The kernel's lines as they are: few enough without functions."""
        return Gradients.view(self)

    def groups(self) -> Iterator[tuple[list[Step], list[str]]]:
        """Of an erase what comes back through it; else dS needs nothing but what was read."""
        if self.kind.erase == "none":
            return
        yield self.early(), []
        yield sorted(self.value_steps(), key=lambda step: step.operation != "read"), []

    def _read(self, step: Step) -> Iterator[str]:
        yield self.read_product(step)
        if self.scalar:
            yield f"{step.result}_VC *= {self.load(self.scalar)}[None, :]"


class ChannelBackAhead(ChannelBack):
    """The same of a decay per key channel."""

    def __init__(self, kind: RecurrenceKind) -> None:
        super().__init__(kind)
        self.steps = tuple(leading_to("dS", self.steps))

    def store(self, tile: str) -> None:
        """Nothing is kept but dS."""


def ahead_by_head(kind: RecurrenceKind, columns: str = "BACK_COLUMNS") -> Ahead:
    """The walk ahead on the way back of a class with a decay per head or none. columns: as of `Ahead`."""
    view = BackAhead(kind).view()
    lines = [*view.lines, *view.update]
    if not kind.beside:
        return _ahead(kind, view.loaded, view.opening, lines, columns=columns)
    opening = [
        "q_part_tiles = tokens(q, end, h, H, q_heads, K, C, PART_K)",
        "part = tl.program_id(0) * tl.num_programs(2) * H + row",
        "put_vector(vector_ends, tl.zeros([BLOCK_K], tl.float32), part, 0, K)",
        "tl.debug_barrier()",
    ]
    return _ahead(kind, view.loaded, view.opening, lines, Vector(opening, view.closing), columns)


def ahead_by_channel(kind: RecurrenceKind) -> Ahead:
    """The walk ahead on the way back of a class with a decay per key channel."""
    walk = ChannelBackAhead(kind)
    if kind.erase != "none":
        walk.values()
    walk.update()
    return _ahead(kind, walk.names(), open_lines(walk.loaded), walk.out)


def ahead_by_value(kind: RecurrenceKind) -> Ahead:
    """The walk ahead on the way back of a class with a decay per value channel."""
    since = "G_CV - decay_CV" if kind.read == "exclusive" else "G_CV"
    update = next(step for step in reverse(forward(kind)).steps if step.operation == "update")
    lines = [
        "decay_CV = decay_tiles.load([start, column]).to(tl.float32)",
        "G_CV = tl.cumsum(decay_CV, 0)",
        "G_end_V1 = tl.sum(tl.where(tl.arange(0, C)[:, None] == C - 1, G_CV, 0.0), 0)[:, None]",
        f"do_CV = (do_tiles.load([start, column]) * tl.exp({since}) * scale).to(dtype)",
        f"dS_VK *= tl.exp(G_end_V1)  # {update.number}",
        "dS_VK += dot(tl.trans(do_CV), q_tiles.load([start, 0]))",
    ]
    return _ahead(kind, ["q", "decay", "do"], open_lines(["q_CK", "decay_VC", "do_VC"]), lines)


def _ahead(
    kind: RecurrenceKind,
    tensors: list[str],
    opening: list[str],
    lines: list[str],
    vector: Vector | None = None,
    columns: str = "BACK_COLUMNS",
) -> Ahead:
    constants = constants_of([name for name in INPUTS if name in tensors], True)
    given = [line.replace("=COLUMNS", f"={columns}") for line in values_of(constants)]
    numbers = ["scale", *(["eps"] if vector else [])]
    ahead = ahead_of(kind, tensors, "do", constants, given, opening, lines, numbers, vector)
    return replace(ahead, columns=columns)
