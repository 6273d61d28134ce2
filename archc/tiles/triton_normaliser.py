"""Print what a normaliser adds to the forward walk: a vector of K beside the state, which every token divides by.

It is what the state would have as one more column, of values that are all one. As a column its rows would begin at no
multiple of 16 bytes, and another block of columns would read all of q and k again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import TileProgram
from archc.tiles.triton_lines import Lines


@dataclass(frozen=True, slots=True)
class Normaliser:
    """What the template shows of it, all of it empty where a class has none.

    tensors, numbers: arguments of the walk. entry, border: lines where a sequence starts, and where the state is
    kept for the backward. lines: after those that make o. update: after those of the state. exit: at the end.
    """

    tensors: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    border: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    update: list[str] = field(default_factory=list)
    exit: list[str] = field(default_factory=list)


def normaliser(kind: RecurrenceKind, program: TileProgram, walk: Lines) -> Normaliser:
    """The lines of a class's normaliser, after `walk` has printed the steps of the state."""
    if not kind.beside:
        return Normaliser()
    step = next(step for step in program.steps if step.operation == "update")
    read = next(step for step in program.steps if step.operation == "read")
    q, within = walk.row(read.operands[0])
    k, factor = walk.row(step.operands[1])
    decay = {"none": "", "head": " * tl.exp(G_end)", "key": " * tl.exp(G_end_K)"}[walk.decay]
    divisor = "z_C"
    if kind.normalize == "max":
        divisor = f"tl.maximum(tl.abs(z_C), {walk.gate('floor')})"
    sums = f"tl.sum({q} * n_K[None, :], 1)" + (f" * {within}" if within else "")
    written = f"tl.sum({k} * {factor}[:, None], 0)" if factor else f"tl.sum({k}.to(tl.float32), 0)"
    return Normaliser(
        ["normaliser", "normalisers", "last", "z"],
        ["eps"],
        [
            *(["channel_K = tl.arange(0, BLOCK_K)"] if walk.decay != "key" else []),
            "own_K = (channel_K < K) & (column == 0)  # the first block of value columns writes it",
            "n_K = tl.zeros([BLOCK_K], tl.float32)",
            "if INITIAL:",
            "    n_K += tl.load(normaliser + tl.program_id(1) * K + channel_K, mask=channel_K < K, other=0.0)",
        ],
        ["tl.store(normalisers + (segment * H + h) * K + channel_K, n_K, mask=own_K)"],
        [
            f"z_C = ({sums} + tl.sum({walk.scores('qk')}.to(tl.float32), 0)) * scale",
            "at_C = (start + tl.arange(0, C)) * H + h",
            "tl.store(z + at_C, z_C, mask=inside_C & (column == 0))",
            f"o_VC /= ({divisor} + eps)[None, :]",
        ],
        [f"n_K = n_K{decay} + {written}"],
        ["tl.store(last + tl.program_id(1) * K + channel_K, n_K, mask=own_K)"],
    )
