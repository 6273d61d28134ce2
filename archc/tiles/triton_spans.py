"""Print what walks one sequence in several places at once: a walk ahead for what each span of tokens does to a state.

Without an erase that is a decay and what the span adds. With one it is a matrix, whose columns are what becomes of the
units of a state: the walk ahead has them as further columns of values, which are zero there. On the way back the
gradient of the state goes through the same, from the end of a span to where it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archc.tiles.kind import RecurrenceKind


@dataclass(frozen=True, slots=True)
class Ahead:
    """What the templates show of a walk ahead and of `carry`, and how they are launched.

    typed_by: the tensor whose type is that of the products. lines: one chunk. start, end: how the decay of a span
    begins and is written, empty where there is none. vector: what `carry` addresses decays by; carry: what a span does
    to a state. sums: the axes of the decay of a span, if it has one. solved: whether it is a matrix. numbers: further
    arguments. given: the constants at its launch. beside: whether a normaliser's vector is carried as well.
    columns: on the way back, the constant that names the value columns of a program.
    """

    arguments: list[str]
    constants: list[str]
    opening: list[str]
    typed_by: str
    start: list[str]
    lines: list[str]
    end: list[str]
    vector: list[str]
    carry: list[str]
    sums: str
    given: list[str]
    solved: bool = False
    numbers: Sequence[str] = ()
    beside: bool = False
    columns: str = "BACK_COLUMNS"

    @property
    def made(self) -> list[str]:
        """The tensors that lie between `walk_ahead` and `carry`."""
        return ["ends", *(["decays"] if self.sums else []), *(["vector_ends"] if self.beside else [])]


@dataclass(frozen=True, slots=True)
class Vector:
    """How a walk ahead carries the vector of a normaliser: lines before the first chunk, and past a chunk."""

    opening: list[str]
    past: list[str]


@dataclass(frozen=True, slots=True)
class _Total:
    """The decay of a whole span: its axes, and the lines that sum, write and apply it."""

    size: str
    start: str
    add: str
    end: tuple[str, ...]
    vector: tuple[str, ...]
    carry: tuple[str, ...]


_TOTALS = {
    "head": _Total(
        "1",
        "total = 0.0",
        "total += G_end",
        ("tl.store(decays + row, total, mask=column == 0)",),
        (),
        ("S_KV = S_KV * tl.exp(tl.load(decays + row)) + end_KV",),
    ),
    "key": _Total(
        "K",
        "total_K = tl.zeros([BLOCK_K], tl.float32)",
        "total_K += G_end_K",
        (
            "at_K = decays + row.to(tl.int64) * K + channel_K",
            "tl.store(at_K, total_K, mask=(channel_K < K) & (column == 0))",
        ),
        ("channel_K = tl.arange(0, BLOCK_K)",),
        (
            "total_K = tl.load(decays + row.to(tl.int64) * K + channel_K, mask=channel_K < K, other=0.0)",
            "S_KV = S_KV * tl.exp(total_K)[:, None] + end_KV",
        ),
    ),
    "value": _Total(
        "V",
        "total_V1 = tl.zeros([COLUMNS, 1], tl.float32)",
        "total_V1 += G_end_V1",
        (
            "channel_V1 = column + tl.arange(0, COLUMNS)[:, None]",
            "at_V1 = decays + row.to(tl.int64) * V + channel_V1",
            "tl.store(at_V1, total_V1, mask=channel_V1 < V)",
        ),
        ("channel_V = column + tl.arange(0, COLUMNS)",),
        (
            "total_V = tl.load(decays + row.to(tl.int64) * V + channel_V, mask=channel_V < V, other=0.0)",
            "S_KV = S_KV * tl.exp(total_V)[None, :] + end_KV",
        ),
    ),
}


def ahead_of(
    kind: RecurrenceKind,
    tensors: Sequence[str],
    typed_by: str,
    constants: Sequence[str],
    given: Sequence[str],
    opening: Sequence[str],
    lines: Sequence[str],
    numbers: Sequence[str] = (),
    vector: Vector | None = None,
) -> Ahead:
    """The two kernels of a class, of which `lines` carry a state through a chunk, and which need these `tensors`.

    given: values of the compile-time constants at the launch. numbers: further arguments of a chunk. vector: what
    carries a normaliser past a chunk.
    """
    erases = kind.core().erase != "none"
    total = None if erases else _TOTALS.get(kind.core().decay)
    body = [*lines, *([total.add] if total else [])]
    uses = "\n".join(body)
    if "inside_C" in uses and "inside_C =" not in uses:
        body.insert(0, "inside_C = start + tl.arange(0, C) < end")
    before = []
    if vector:
        body += vector.past
    if "j_J1" in uses:
        before.append("j_J1, c_1C = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]")
    if "channel_K" in uses or (total and "channel_K" in total.end[0]):
        before.append("channel_K = tl.arange(0, BLOCK_K)")
    if erases:
        carry = [
            "span_KK = tl.reshape(matrix_tiles.load([row, 0, VALUES]), [BLOCK_K, BLOCK_K])",
            "S_KV = dot(span_KK, S_KV) + end_KV",
        ]
    else:
        carry = [*total.carry] if total else ["S_KV += end_KV"]
    return Ahead(
        [*tensors],
        [*constants, *(["PART_K: tl.constexpr"] if vector else [])],
        [*before, *opening, *(vector.opening if vector else [])],
        typed_by,
        [total.start] if total else [],
        body,
        [*total.end] if total else [],
        [*total.vector] if total else [],
        carry,
        total.size if total else "",
        [*given, *(["PART_K=min(VECTOR_CHANNELS, BLOCK_K)"] if vector else [])],
        erases,
        numbers,
        vector is not None,
    )
