"""Print what a normaliser adds to the forward walk: a vector of K beside the state, which every token divides by.

It is what the state would have as one more column, of values that are all one. As a column its rows would begin at no
multiple of 16 bytes, and another block of columns would read all of q and k again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Step, TileProgram
from archc.tiles.triton_functions import Function
from archc.tiles.triton_lines import CHANNEL, Lines, part_of
from archc.tiles.triton_spans import Vector

# Key channels of a vector in memory that a kernel has at once.
VECTOR_CHANNELS = 32


@dataclass(frozen=True, slots=True)
class Normaliser:
    """What the template shows of it, all of it empty where a class has none.

    tensors, numbers: arguments of the walk. entry, border: lines where a sequence starts, and where the state is
    kept for the backward. ahead: before the scores. divisor: behind them. lines: after those that make o. update:
    after those of the state. exit: at the end.
    """

    tensors: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    border: list[str] = field(default_factory=list)
    ahead: list[str] = field(default_factory=list)
    divisor: list[str] = field(default_factory=list)
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
    sums = [f"tl.sum({part_of(q, part)} * n{part}_K[None, :], 1)" for part in walk.parts]
    updates = [vector_update(walk, step, part) for part in walk.parts]
    factor = f" * {within}" if within else ""
    ahead, before, inverse = [], f"{sums[0]}{factor}", []
    lines = [f"o_VC /= {divisor(kind, walk)}[None, :]"]
    if len(sums) > 1:  # part by part, and early: behind the products there is no room
        for sign, text, update in zip(("=", "+="), sums, updates, strict=True):
            ahead += [f"z_C {sign} {text}", update]
        before, updates = f"z_C{factor}", []
        inverse, lines = [f"over_C = 1.0 / {divisor(kind, walk)}"], ["o_VC *= over_C[None, :]"]
    divided = [
        f"z_C = ({before} + tl.sum({walk.scores('qk')}.to(tl.float32), 0)) * scale",
        "at_C = z + tl.cast(start, tl.int64) * H + h + tl.arange(0, C) * H",
        "tl.store(at_C, z_C, mask=inside_C & (column == 0))",
        *inverse,
    ]
    channels = [CHANNEL[part] for part in walk.parts]

    def put(x: str, row: str) -> list[str]:
        """Each block of value columns has the vector; the first one writes it."""
        lines = [
            f"    put_vector({x}, n{part}_K, {row}, {channel}, K)"
            for part, channel in zip(walk.parts, channels, strict=True)
        ]
        return ["if column == 0:", *lines]

    return Normaliser(
        ["normaliser", "normalisers", "last", "z"],
        ["eps"],
        [
            f"n{part}_K = vector_before(normaliser, tl.program_id(2) * H + h, {channel}, K, {walk.keys}, INITIAL)"
            for part, channel in zip(walk.parts, channels, strict=True)
        ],
        put("normalisers", "segment * H + h"),
        ahead,
        divided,
        lines,
        updates,
        put("last", "n * H + h"),
    )


def divisor(kind: RecurrenceKind, lines: Lines) -> str:
    """What a token's values are divided by, `[C]`."""
    if kind.normalize == "max":
        return f"(tl.maximum(tl.abs(z_C), {lines.gate('floor')}) + eps)"
    return "(z_C + eps)"


def slope_of(lines: Lines) -> str:
    """The derivative of the divisor after z, where it is not one."""
    return f"tl.where(tl.abs(z_C) > {lines.gate('floor')}, tl.where(z_C < 0.0, -1.0, 1.0), 0.0)"


def vector_update(lines: Lines, update: Step, part: str = "") -> str:
    """The vector behind a chunk, or a part of it: what the state would have as one more column."""
    decay = {"none": "", "head": " * tl.exp(G_end)", "key": f" * tl.exp(G_end{part}_K)"}[lines.decay]
    k, factor = lines.row(update.operands[1])
    k = part_of(k, part)
    written = f"tl.sum({k} * {factor}[:, None], 0)" if factor else f"tl.sum({k}.to(tl.float32), 0)"
    return f"n{part}_K = n{part}_K{decay} + {written}"


@dataclass(frozen=True, slots=True)
class ReverseNormaliser:
    """What it adds to a walk of the backward, all of it empty where a class has none.

    given, made: tensors that the walk reads and writes besides tiles. entry: lines before the first chunk. border:
    where a segment of chunks starts. exit: where a sequence does.
    """

    given: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    border: list[str] = field(default_factory=list)
    exit: list[str] = field(default_factory=list)


def back_normaliser(spans: bool) -> ReverseNormaliser:
    """The vector's gradient dn in `walk_back`: each block of value columns carries its own part of it.

    It is carried in memory: beside dS there are no registers for it and all channels of q and k. Of whole sequences
    that is where it ends; spans have a place each.
    """
    own = "(tl.program_id(0).to(tl.int64) * slots + segment) * H + h"
    here = carried_in(spans)
    read = f"dn_K = {vector_read(spans)}"
    first = "(tl.program_id(0) * sequences + n) * H + h"
    return ReverseNormaliser(
        ["dlast"],
        ["dnormalisers", *(["vectors"] if spans else []), "dfirst"],
        [
            "k_part_tiles = tokens(k, end, h, H, k_heads, K, C, PART_K)",
            "q_part_tiles = tokens(q, end, h, H, q_heads, K, C, PART_K)",
            "row = (tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)) * H + h",
            begin_vector(here).call,
        ],
        [read, f"put_vector(dnormalisers, dn_K, {own}, 0, K)"],
        [read, f"put_vector(dfirst, dn_K, {first}, 0, K)"] if spans else [],
    )


def carried_in(spans: bool) -> str:
    """The tensor that has the vector's gradient on its way."""
    return "vectors" if spans else "dfirst"


def vector_read(spans: bool) -> str:
    """That gradient as a kernel reads it."""
    return f"vector_before({carried_in(spans)}, row, 0, K, BLOCK_K, True)"


def vector_past(x: str, row: str, rows: str, given: str, decayed: bool) -> list[str]:
    """The lines that carry a vector in memory past a chunk. given: numbers a token, all one if empty."""
    return [
        f"row_C, kept = {given or 'tl.full([C], 1.0, tl.float32)'}, {'tl.exp(G_end)' if decayed else '1.0'}",
        f"vector_past({x}, {row}, start, {rows}_part_tiles, row_C, kept, K, PART_K)",
    ]


def vector_ahead(rows: str, given: str, decayed: bool) -> Vector:
    """The vector in `walk_ahead`, where the first block of value columns has it."""
    first = "if column == 0:\n    "
    opening = [
        f"{rows}_part_tiles = tokens({rows}, end, h, H, {rows}_heads, K, C, PART_K)",
        f"{first}put_vector(vector_ends, tl.zeros([BLOCK_K], tl.float32), row, 0, K)",
        "tl.debug_barrier()",
    ]
    *lines, past = vector_past("vector_ends", "row", rows, given, decayed)
    return Vector(opening, [*lines, f"{first}{past}"])


def begin_vector(x: str) -> Function:
    """What puts there what the vector behind the last token receives."""
    return Function(
        "begin_vector",
        [x, "row", "dlast", "column", "H", "K", "BLOCK_K"],
        "The vector's gradient behind the last token: a part of the sum over blocks, of which one has it whole.",
        [
            "dlast_K = vector_before(dlast, tl.program_id(2) * H + tl.program_id(1), 0, K, BLOCK_K, True)",
            f"put_vector({x}, tl.where(column == 0, dlast_K, 0.0), row, 0, K)",
            "tl.debug_barrier()",
        ],
        [],
    )


def through_vector(x: str) -> Function:
    """The same for dn of a vector that decays, with what the decay receives by it. x: where it lies."""
    return Function(
        "through_vector",
        [x, "row", "start", "k_part_tiles", "q_part_tiles", "row_C", "kept", "K", "PART_K"],
        "Carry the vector's gradient past a chunk, a few key channels at a time; each token's key times it.",
        [
            "tl.debug_barrier()  # a channel is with several threads: all have read before one writes",
            f"dn = {x} + tl.cast(row, tl.int64) * K",
            "met_C = tl.zeros(row_C.shape, tl.float32)",
            "for channel in range(0, K, PART_K):\n    "
            + "\n    ".join(
                [
                    "channel_P = channel + tl.arange(0, PART_K)",
                    "dn_P = tl.load(dn + channel_P, mask=channel_P < K, other=0.0)",
                    "met_C += tl.sum(k_part_tiles.load([start, channel]) * dn_P[None, :], 1)",
                    "dn_P = dn_P * kept + tl.sum(q_part_tiles.load([start, channel]) * row_C[:, None], 0)",
                    "tl.debug_barrier()",
                    "tl.store(dn + channel_P, dn_P, mask=channel_P < K)",
                ]
            ),
            "tl.debug_barrier()",
        ],
        ["met_C"],
    )


def walked_again(lines: Lines) -> ReverseNormaliser:
    """The vector in `walk_again`."""
    here = "(tl.program_id(1) * H + h) * K + channel_K, mask=channel_K < K, other=0.0"
    entry = ["channel_K = channel + tl.arange(0, CHANNELS)", f"n_K = tl.load(normalisers + {here})"]
    if lines.decay == "none":
        return ReverseNormaliser(["normalisers"], entry=entry)
    entry += [f"dn_K = tl.load(dnormalisers + {here})", "anchor += tl.sum(n_K * dn_K)"]
    return ReverseNormaliser(["normalisers", "dnormalisers"], entry=entry)
