"""A namespace while equations are read: what its names stand for, its statics and axes, and how nodes are added."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Self

from archc.elaboration.context import Context
from archc.graph.types import Node, Ref, ValueType
from archc.graph.values import Abandon, Several, StaticValue, Traced, Value
from archc.spec import expressions as ex
from archc.spec import statics
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label, Span
from archc.spec.rewrite import rewrite, rewrite_names
from archc.spec.spec import Body, Static

LAYER_NAMES = frozenset({"layer", "site"})
CONSTANTS = {"true": True, "false": False, "none": None}


class Scope(ABC):
    """A namespace of one body (or of one function inlined into it) while its equations are read.

    `statics` maps a static name to an expression over the names of the instance; `values` maps inputs and
    equations to what they stand for; `axis_variables` are a function's own names for its inputs' axes.
    """

    def __init__(
        self,
        context: Context,
        body: Body,
        statics_: Mapping[str, ex.Expr],
        *,
        equation: str = "",
        prefix: str = "",
        depth: int = 0,
    ) -> None:
        self.context = context
        self.builder = context.builder
        self.environment = context.environment
        self.report = context.report
        self.body = body
        self.statics = dict(statics_)
        self.equation = equation  # the body's equation being read, which names weights
        self.prefix = prefix  # inside a function: the name of the call
        self.local = ""  # inside a function: the function's equation
        self.depth = depth
        self.values: dict[str, Value | None] = {}
        self.axis_variables: dict[str, tuple[Axis, ...]] = {}
        self.targets = 1
        self.drawing = False  # inside an init, where random draws stand

    @abstractmethod
    def read(self, expr: ex.Expr) -> Value:
        """What an expression stands for. Raises `Abandon` once an error is recorded."""

    # -- names ----------------------------------------------------------------------------------------------

    def fail(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        note: str = "",
        help: str = "",
        labels: Sequence[Label] = (),
    ) -> Abandon:
        """Record an error; the caller raises what is returned."""
        self.report.error(code, message, span, note=note, help=help, labels=labels)
        return Abandon()

    def within(self, function: Body, prefix: str) -> Self:
        """The namespace of a function that is called here."""
        return type(self)(
            self.context, function, {}, equation=self.equation, prefix=prefix, depth=self.depth + 1
        )

    def body_equations(self) -> frozenset[str]:
        """The names that this scope's body defines."""
        return frozenset(target.name for equation in self.body.equations for target in equation.targets)

    def suggest(self, name: str, among: Sequence[str]) -> str:
        """ "did you mean", or nothing."""
        close = difflib.get_close_matches(name, list(among), 1)
        return f"did you mean `{close[0]}`?" if close else ""

    def is_none(self, expr: ex.Expr) -> bool:
        """Whether an argument comes to `none` (literally, by a parameter, or by a decided condition)."""
        if isinstance(expr, ex.Conditional):
            return self.is_none(expr.then if self.decide(expr.test) else expr.otherwise)
        if isinstance(expr, ex.Name):
            if expr.id == "none":
                return True
            if expr.id in self.statics:
                return self.evaluate(self.statics[expr.id]) is None
        return False

    def word(self, expr: ex.Expr) -> str | None:
        """A bare or quoted word, or a choice parameter's value."""
        if isinstance(expr, ex.Conditional):
            return self.word(expr.then if self.decide(expr.test) else expr.otherwise)
        if isinstance(expr, ex.Text):
            return expr.value
        if isinstance(expr, ex.Name):
            if expr.id in self.statics:
                found = self.evaluate(self.statics[expr.id])
                if isinstance(found, str):
                    return found
            return expr.id
        return None

    # -- statics --------------------------------------------------------------------------------------------

    def substitute(self, expr: ex.Expr) -> ex.Expr:
        """The expression with this scope's static names and axis variables replaced by the instance's own."""

        def replace(name: ex.Name) -> ex.Expr:
            if name.id in self.axis_variables and len(self.axis_variables[name.id]) == 1:
                return self.axis_variables[name.id][0].expr()
            if name.id in self.statics:
                return self.statics[name.id]
            value = self.values.get(name.id)
            return value.expr if isinstance(value, StaticValue) else name

        return rewrite_names(expr, replace)

    def evaluate(self, expr: ex.Expr) -> Static:
        """The value of an expression over the instance's names, at this layer."""
        found = statics.evaluate(expr, self.environment, self.report)
        return found

    def decide(self, test: ex.Expr) -> bool:
        """Decide a static condition for this layer; conditions on the layer are recorded for the class."""
        value = self.read(test)
        if not isinstance(value, StaticValue):
            raise self.fail(
                "E330",
                "a condition must be known before the model runs",
                test.span,
                note="it depends on the tokens",
                help="choose between traced values with where(...)",
            )
        before = len(self.report.diagnostics)
        found = self.evaluate(value.expr)
        if len(self.report.diagnostics) > before:
            raise Abandon
        chosen = statics.is_true(found)
        if LAYER_NAMES & statics.free_names(value.expr):
            self.builder.decisions[value.expr] = chosen
        return chosen

    def axes(self, expr: ex.Expr) -> tuple[Axis, ...]:
        """A list of axes, or one axis. A function's `...` and its parameters of type axes expand in place."""
        if isinstance(expr, ex.Conditional):
            return self.axes(expr.then if self.decide(expr.test) else expr.otherwise)
        if isinstance(expr, ex.Name):
            if expr.id in self.axis_variables:
                return self.axis_variables[expr.id]
            bound = self.statics.get(expr.id)
            if isinstance(bound, ex.ListExpr):  # names of the instance already
                return tuple(Axis.of(item) for item in bound.items)
        if isinstance(expr, ex.ListExpr):
            found = tuple(axis for item in expr.items for axis in self.axes(item))
            twice = next((axis for axis in found if found.count(axis) > 1), None)
            if twice is not None:
                raise self.fail(
                    "E340",
                    f"the axis `{twice}` occurs twice in one value",
                    expr.span,
                    note="axes are told apart by their names",
                    help="give one of them a size of its own under `sizes:`",
                )
            return found
        value = self.read(expr)
        if not isinstance(value, StaticValue):
            raise self.fail(
                "E341",
                "an axis must be a parameter, a size or arithmetic on them",
                expr.span,
                note="this depends on the tokens, and sizes are fixed before the model runs",
            )
        number = self.evaluate(value.expr)
        if (
            isinstance(number, bool)
            or not isinstance(number, Fraction)
            or number.denominator != 1
            or number < 1
        ):
            shown = "nothing" if number is None else str(number)
            raise self.fail(
                "E342",
                f"an axis must be a whole number of at least 1, this is {shown}",
                expr.span,
                help="ceil, floor, round, round_up(x, multiple) and round_down make whole numbers"
                if isinstance(number, Fraction) and number.denominator != 1
                else "",
            )
        return (Axis.of(value.expr),)

    def expand(self, axis: Axis) -> Axis:
        """An axis over parameters only, declared sizes replaced by their definitions."""
        return self.context.expand(axis)

    def size(self, axis: Axis) -> Fraction:
        """The number an axis comes to."""
        found = self.evaluate(axis.expr())
        if not isinstance(found, Fraction):
            raise Abandon
        return found

    def decided(self, expr: ex.Expr) -> ex.Expr:
        """The expression with its static conditionals taken."""
        return rewrite(
            expr,
            lambda node: (
                (node.then if self.decide(node.test) else node.otherwise)
                if isinstance(node, ex.Conditional)
                else None
            ),
        )

    # -- nodes ----------------------------------------------------------------------------------------------

    def traced(self, value: Value, span: Span) -> Traced:
        """The value as a node; a static number becomes one."""
        if isinstance(value, Traced):
            return value
        if isinstance(value, Several):
            raise self.fail(
                "E306",
                f"this has {len(value.items)} results, one is expected here",
                span,
                help="name them all: `a, b: ...`",
            )
        number = self.evaluate(value.expr)
        if isinstance(number, bool) or number is None or not isinstance(number, (Fraction, float)):
            shown = "none" if number is None else str(number).lower() if isinstance(number, bool) else number
            raise self.fail(
                "E307",
                f"a value is expected here, not `{shown}`"
                if isinstance(number, (str, bool)) or number is None
                else "a value is expected here, this is a list or a mapping",
                span,
                help="choose with it: `... if condition else ...`",
            )
        low = high = float(number)
        if LAYER_NAMES & statics.free_names(value.expr):
            low, high = float("-inf"), float("inf")
        return self.add("static", (), (ValueType((), "static", low, high),), {"expr": value.expr}, span)[0]

    def add(
        self,
        op: str,
        inputs: Sequence[Traced],
        types: tuple[ValueType, ...],
        attrs: Mapping[str, Any],
        span: Span,
        name: str = "",
    ) -> list[Traced]:
        """Append a node and return its results. A member used again (same `name=`) is checked by the caller."""
        if op != "attention" and {"token", "block"} <= {value.type.rate for value in inputs}:
            raise self.fail(
                "E382",
                "a value of tokens and one of blocks meet here",
                span,
                note="blocks come once every few tokens, so there is no block for each token",
                help="attention lets tokens look at blocks: attention(q, k_blocks, v_blocks)",
            )
        node = Node(
            len(self.builder.nodes),
            op,
            tuple(value.ref for value in inputs),
            dict(attrs),
            types,
            span,
            name,
            self.equation,
        )
        twice = next((a for type_ in types for a in type_.axes if type_.axes.count(a) > 1), None)
        if twice is not None:
            raise self.fail(
                "E340",
                f"the axis `{twice}` would occur twice in the result",
                span,
                note="axes are told apart by their names",
                help="give one of them a size of its own under `sizes:`",
            )
        if name and not self.builder.same_weights(node):
            raise self.fail(
                "E362",
                f"`{name}` is the name of another weight of this body",
                span,
                labels=[Label(self.builder.nodes[self.builder.owners[name]].span, "the other one")],
                note="calls of one name share their weights, so they must be of the same operation and shape",
                help="give one of them another name",
            )
        self.builder.nodes.append(node)
        return [Traced(Ref(node.id, index), type_) for index, type_ in enumerate(types)]
