"""Tile programs: one chunk of a recurrence as straight-line code over a closed set of tile operations.

A chunk has C tokens. `G` is the cumulative log decay within it, inclusive; `G_end` its last row. A `Row` is a
tile of rows with the decay that belongs to them in this place:

    ""   x_i                       plain
    "+"  x_i e^(G_i)               read side: reaches back to the start of the chunk
    "<"  x_i e^(G_(i-1))           read side, before the decay of token i itself
    "-"  y_j e^(-G_j)              write side, only ever met together with a read side or with G_end
    ">"  y_j e^(G_end - G_j)       write side towards the end of the chunk, in gradients of decays

Exponents stand beside the tile and are never applied on their own where they could overflow.

    operation    result                       meaning
    cumulative   G                            running sum of the log decay within the chunk
    pair         P [C, C]                     P_ij = sum_d x_id y_jd, i > j ("strict") or i >= j ("inclusive")
    invert       X [C, C]                     (I + A)^-1 or (I - A)^-1 of a strictly lower A
    apply        [C, .]                       P y, or P^T x when transposed
    solve        [C, .]                       X z, or X^T z when transposed
    read         [C, V]                       x S
    project      [C, K]                       y S^T
    update       [K, V]                       e^(G_end) S + sum x^T y
    combine      [C, .]                       a + b or a - b
    add          like its row                 a + row, with the result's own value a
    extract      [C] or [C - 1]               a diagonal of P, which is taken out of P
    scale        [C] or [C - 1]               product of two row scalars
    contract     [C] or like G                x * dx summed over the axes that the result lacks
    gather       like the decay               what the decayed rows received, summed over all that a decay reaches

The reverse of a program is a program over the same operations (`reverse.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SEGMENT = 64  # chunks between two states that kernels keep for the backward
EXPONENTS = ("", "+", "<", "-", ">")


@dataclass(frozen=True, slots=True)
class Row:
    """A tile of rows `[C, .]` in one role: times a row scalar, times its decay."""

    base: str
    exponent: str = ""
    scalar: str = ""

    def __str__(self) -> str:
        scalar = f"{self.scalar}*" if self.scalar else ""
        exponent = f"^{self.exponent}" if self.exponent else ""
        return f"{scalar}{self.base}{exponent}"


@dataclass(frozen=True, slots=True)
class Step:
    """One tile operation. `adds` accumulates into a result that an earlier step defined.

    number: the step of the mathematics, or, in a reverse program, the step that it undoes.
    mask "neighbour": of extract, scale and add, rows i meet rows i - 1 (transposed: i + 1) instead of themselves.
    mask: of a pair product, "strict" or "inclusive". into: the exponent of the result's rows.
    sign: -1 negates the result. minus: of an inverse and a solve, `I - A` instead of `I + A`.
    signs: of an update, one for each product.
    """

    result: str
    operation: str
    operands: tuple[Row, ...]
    number: int
    mask: str = ""
    sign: int = 1
    minus: bool = False
    transposed: bool = False
    into: str = ""
    adds: bool = False
    signs: tuple[int, ...] = ()

    def __str__(self) -> str:
        details = [str(operand) for operand in self.operands]
        details += [self.mask] if self.mask else []
        details += ["I - A"] if self.minus else []
        details += ["transposed"] if self.transposed else []
        details += [f"into ^{self.into}"] if self.into else []
        details += [f"signs {self.signs}"] if -1 in self.signs else []
        mark = ("-=" if self.sign < 0 else "+=") if self.adds else ("= -" if self.sign < 0 else "=")
        return f"{self.number:2d}  {self.result} {mark} {self.operation}({', '.join(details)})"


@dataclass(frozen=True, slots=True)
class TileProgram:
    """A straight-line program. `axes` gives each value's axes, for example "CK", "CC", "KV"."""

    steps: tuple[Step, ...]
    axes: dict[str, str]
    inputs: tuple[str, ...]
    state: str  # the name of the carried state
    output: str

    def __str__(self) -> str:
        return "\n".join(str(step) for step in self.steps)

    def count(self, operation: str) -> int:
        """How many steps have this operation."""
        return sum(step.operation == operation for step in self.steps)


def leading_to(state: str, steps: Sequence[Step]) -> list[Step]:
    """The steps that a value depends on; of a walk those which the next chunk waits for."""
    found: list[Step] = []
    wanted = {state}
    for step in reversed(steps):
        if step.result in wanted:
            found.insert(0, step)
            wanted |= {row.base for row in step.operands}
    return found
