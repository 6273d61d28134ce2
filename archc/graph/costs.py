"""What an operation costs, as whole numbers: parameters, FLOPs a token, FLOPs a visible key, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction

from archc.spec import statics
from archc.spec.axes import Axis
from archc.spec.diagnostics import Reporter
from archc.spec.expressions import Expr
from archc.spec.spec import Static


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs of one operation for one token of one sequence.

    `matrix_flops` are spent on matrices of weights (a multiply-add counts two), `chunk_flops` and
    `chunk_backward_flops` on recurrences over chunks, `step_flops` on the same while decoding, `flops` on everything
    else. `key_flops` are spent on each key that a query sees, `step_key_flops` on the same while decoding only;
    `window` bounds how many those are. `call_matrix_flops` are spent once a call, on matrices over values of the model.
    """

    parameters: int = 0
    matrix_flops: int = 0
    chunk_flops: int = 0
    chunk_backward_flops: int = 0
    step_flops: int = 0
    flops: int = 0
    key_flops: int = 0
    step_key_flops: int = 0
    call_matrix_flops: int = 0
    window: int | None = None

    def __add__(self, other: Cost) -> Cost:
        """Sums everything but the window, which belongs to a single operation."""
        totals = {
            f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "window"
        }
        return Cost(**totals)

    def times(self, count: int) -> Cost:
        """As many of these operations, each with the same window."""
        return replace(
            self, **{f.name: count * getattr(self, f.name) for f in fields(self) if f.name != "window"}
        )


class Sizes:
    """The numbers that axes and static expressions come to in one module."""

    def __init__(self, values: Mapping[str, Static], report: Reporter | None = None) -> None:
        self.values = values
        self.report = report or Reporter()

    def number(self, expr: Expr) -> float:
        """The value of a static expression."""
        found = statics.evaluate(expr, self.values, self.report)
        if isinstance(found, Fraction):
            return float(found)
        return float(found) if isinstance(found, (int, float)) else 0

    def axis(self, axis: Axis) -> int:
        """The size of one axis."""
        return int(self.number(axis.expr()))

    def product(self, axes: Sequence[Axis]) -> int:
        """How many entries the axes have together."""
        total = 1
        for axis in axes:
            total *= self.axis(axis)
        return total
