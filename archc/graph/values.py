"""What a name stands for while equations are read: a static expression, a traced value, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from archc.graph.types import Ref, ValueType
from archc.spec.expressions import Expr


@dataclass(frozen=True, slots=True)
class StaticValue:
    """Known before the model runs: an expression over parameters, sizes, `layer` and `site`."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class Traced:
    """Computed when the model runs."""

    ref: Ref
    type: ValueType


@dataclass(frozen=True, slots=True)
class Several:
    """The results of an operation with more than one."""

    items: tuple[Traced, ...]


Value = StaticValue | Traced | Several


class Abandon(Exception):
    """An equation cannot be read further; its error is recorded already."""
