"""One call of an operation as the operation sees it: arguments by name, read as the signature says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn, Protocol

from archc.graph.signature import Callee
from archc.graph.types import Node, Ref, ValueType
from archc.graph.values import Abandon, Several, StaticValue, Traced, Value
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.spec import Body, Settings, Static

COMMON_KEYWORDS = ("name", "share")


@dataclass(frozen=True, slots=True)
class Pair:
    """An expression over pairs of tokens (`i`, `j`, the score `s`), kept for the printed mask or score.

    `values`: names in it that are traced, with the value each stands for.
    """

    expr: ex.Expr
    values: tuple[tuple[str, Traced], ...]


class CallSite(Protocol):
    """The place at which a call stands, as far as operations may ask about it."""

    report: Reporter
    body: Body
    equation: str
    values: dict[str, Value | None]

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes of the subgraph so far."""

    @property
    def settings(self) -> Settings:
        """The numbers of the model."""

    @property
    def in_losses(self) -> bool:
        """Whether an equation of `losses:` is being read, where sums over tokens may stand."""

    @property
    def default_init(self) -> ex.Expr | None:
        """The start of matrices that do not say their own."""

    def suggest(self, name: str, among: Sequence[str]) -> str:
        """ "did you mean", or nothing."""

    def read(self, expr: ex.Expr) -> Value:
        """What an expression stands for."""

    def is_none(self, expr: ex.Expr) -> bool:
        """Whether an argument comes to `none`."""

    def word(self, expr: ex.Expr) -> str | None:
        """A bare or quoted word, or a choice parameter's value."""

    def evaluate(self, expr: ex.Expr) -> Static:
        """The value of a static expression at this layer."""

    def decide(self, test: ex.Expr) -> bool:
        """Decide a static condition for this layer."""

    def axes(self, expr: ex.Expr) -> tuple[Axis, ...]:
        """A list of axes, or one axis."""

    def expand(self, axis: Axis) -> Axis:
        """An axis over parameters only."""

    def size(self, axis: Axis) -> Fraction:
        """The number an axis comes to."""

    def traced(self, value: Value, span: Span) -> Traced:
        """The value as a node; a static number becomes one."""

    def add(
        self,
        op: str,
        inputs: Sequence[Traced],
        types: tuple[ValueType, ...],
        attrs: Mapping[str, Any],
        span: Span,
        name: str = "",
    ) -> list[Traced]:
        """Append a node and return its results."""

    def elementwise(
        self, name: str, values: Sequence[Value], span: Span, places: Sequence[Span] = ()
    ) -> Traced:
        """An elementwise operation of values that align by axis names."""

    def initial(self, expr: ex.Expr, axes: tuple[Axis, ...]) -> Ref:
        """An init equation of a weight with these axes."""

    def pair(self, expr: ex.Expr) -> Pair | None:
        """A mask or score, or None where it is neutral."""

    def member_name(self, call: Call, given: str | None, suffix: str) -> str:
        """The attribute of a call with weights."""

    def state_name(self, call: Call) -> str:
        """The name of a call's memory."""

    def before(self, call: Call, attrs: Mapping[str, Any], type_: ValueType) -> Traced:
        """What an equation of this part was at the token before."""

    def sequential(self, call: Call, values: Sequence[Traced]) -> Value:
        """A part at each token, after the token before it."""


class Call:
    """Arguments bound to a signature. Reading one that is wrong records the error and raises `Abandon`."""

    def __init__(self, expr: ex.Call, operation: Callee, scope: CallSite) -> None:
        self.expr = expr
        self.operation = operation
        self.scope = scope
        self.span = expr.span
        self.given: dict[str, ex.Expr] = {}
        self.rest: tuple[ex.Expr, ...] = ()
        self._bind()

    def _bind(self) -> None:
        positional = [a for a in self.operation.signature.arguments if not a.keyword_only]
        args = list(self.expr.args)
        for index, argument in enumerate(positional):
            if argument.kind in ("values", "pieces"):
                self.rest = tuple(args[index:])
                args = args[:index]
                break
            if index < len(args):
                self.given[argument.name] = args[index]
        else:
            if len(args) > len(positional):
                self.fail(
                    "E310",
                    f"`{self.operation.name}` takes {counted(len(positional), 'argument')} without a name, "
                    f"{len(args)} are given",
                    args[len(positional)].span,
                    help=self._usage(),
                )
        names = {a.name for a in self.operation.signature.arguments if a.kind not in ("values", "pieces")}
        for keyword in self.expr.keywords:
            if keyword.name in COMMON_KEYWORDS and self.operation.weighted:
                self.given[keyword.name] = keyword.value
            elif keyword.name not in names:
                self.fail(
                    "E311",
                    f"`{self.operation.name}` has no argument `{keyword.name}`",
                    keyword.span,
                    help=self.scope.suggest(keyword.name, [*names, *COMMON_KEYWORDS]) or self._usage(),
                )
            elif keyword.name in self.given:
                self.fail(
                    "E312",
                    f"`{keyword.name}` is given twice",
                    keyword.span,
                    labels=[Label(self.given[keyword.name].span, "the first one")],
                    help=self._usage(),
                )
            else:
                self.given[keyword.name] = keyword.value
        for argument in self.operation.signature.arguments:
            missing = (
                argument.name not in self.given
                if argument.kind not in ("values", "pieces")
                else not self.rest
            )
            if argument.required and missing:
                self.fail("E313", f"`{self.operation.name}` needs `{argument.name}`", help=self._usage())

    def _usage(self) -> str:
        return f"write {self.operation.name}({self.operation.signature})"

    def fail(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        *,
        note: str = "",
        help: str = "",
        labels: Sequence[Label] = (),
    ) -> NoReturn:
        """Record an error at `span` (default: the whole call) and give up on this equation."""
        self.scope.report.error(code, message, span or self.span, note=note, help=help, labels=labels)
        raise Abandon

    def span_of(self, name: str) -> Span:
        """Where an argument stands, or the call."""
        return self.given[name].span if name in self.given else self.span

    def has(self, name: str) -> bool:
        """Whether the argument is given and is not `none`."""
        expr = self.given.get(name)
        return expr is not None and not self.scope.is_none(expr)

    # -- values ---------------------------------------------------------------------------------------------

    def any(self, name: str) -> Value | None:
        """A static or traced value, or None where it is absent or `none`."""
        if not self.has(name):
            return None
        return self.scope.read(self.given[name])

    def value(self, name: str) -> Traced:
        """A traced value; a static number is lifted to one. Required."""
        found = self.scope.read(self.given[name])
        return self.scope.traced(found, self.given[name].span)

    def optional(self, name: str) -> Traced | None:
        """A traced value, or None where it is absent or `none`."""
        return self.value(name) if self.has(name) else None

    def values(self) -> list[Traced]:
        """The variadic values."""
        return [self.scope.traced(self.scope.read(expr), expr.span) for expr in self.rest]

    # -- statics --------------------------------------------------------------------------------------------

    def axes(self, name: str) -> tuple[Axis, ...] | None:
        """A list of axes, or one axis, or None."""
        return self.scope.axes(self.given[name]) if self.has(name) else None

    def pieces(self) -> list[tuple[tuple[Axis, ...], Span]]:
        """The variadic axes of `split`."""
        return [(self.scope.axes(expr), expr.span) for expr in self.rest]

    def static(self, name: str) -> ex.Expr | None:
        """A static expression over the names of the instance, or None."""
        if not self.has(name):
            return None
        found = self.scope.read(self.given[name])
        if not isinstance(found, StaticValue):
            self.fail(
                "E320",
                f"`{name}` of `{self.operation.name}` must be known before the model runs",
                self.given[name].span,
                note="it depends on the tokens",
                help="use a parameter, a size or a number here",
            )
        return found.expr

    def number(self, name: str, default: Fraction | None = None) -> Fraction | float:
        """The value of a static number."""
        expr = self.static(name)
        if expr is None:
            if default is None:
                self.fail("E313", f"`{self.operation.name}` needs `{name}`", help=self._usage())
            return default
        found = self.scope.evaluate(expr)
        if isinstance(found, bool) or not isinstance(found, (Fraction, float, int)):
            shown = f"`{str(found).lower()}`" if isinstance(found, (bool, str)) else "something else"
            self.fail(
                "E321",
                f"`{name}` of `{self.operation.name}` must be a number, this is {shown}",
                self.given[name].span,
            )
        return found

    def none(self) -> ex.Expr:
        """The static `none`."""
        return ex.Name(self.span, "none")

    def flag(self, name: str, default: bool = False) -> bool:
        """A static true or false, decided for this layer."""
        return self.scope.decide(self.given[name]) if self.has(name) else default

    def word(self, name: str, choices: Sequence[str] = ()) -> str | None:
        """A bare word that the operation declares (`normalize=max`); it is never looked up."""
        expr = self.given.get(name)
        if expr is None:
            return None
        text = self.scope.word(expr)
        if text is None or (choices and text not in choices):
            listed = ", ".join(choices)
            self.fail(
                "E322",
                f"`{name}` of `{self.operation.name}` must be one of: {listed}"
                if choices
                else f"`{name}` of `{self.operation.name}` must be a bare word",
                expr.span,
            )
        return None if text == "none" else text

    def one_axis(self, name: str) -> Axis:
        """Exactly one axis."""
        found = self.axes(name) or ()
        if len(found) != 1:
            self.fail(
                "E353",
                f"`{self.operation.name}` takes one axis here, this is {shape(found)}",
                self.span_of(name),
                help="do it for one axis after the other",
            )
        return found[0]

    def words(self, name: str, choices: Sequence[str]) -> tuple[str, ...]:
        """A list of bare words, `outputs=[out, lse]`."""
        expr = self.given.get(name)
        if expr is None:
            return ()
        items = expr.items if isinstance(expr, ex.ListExpr) else (expr,)
        found = []
        for item in items:
            text = self.scope.word(item)
            if text is None or text not in choices:
                self.fail(
                    "E322", f"`{name}` of `{self.operation.name}` takes: {', '.join(choices)}", item.span
                )
            found.append(text)
        return tuple(found)

    def init(self, name: str, axes: tuple[Axis, ...]) -> Ref | None:
        """The value that a weight with these axes starts from: statics, model-rate values and random draws."""
        if not self.has(name):
            return None
        return self.scope.initial(self.given[name], axes)

    def default_init(self, axes: tuple[Axis, ...]) -> Ref | None:
        """The start of matrices that do not say their own: the body's or the model's `init:`."""
        expr = self.scope.default_init
        return None if expr is None else self.scope.initial(expr, axes)

    def pair(self, name: str) -> Pair | None:
        """A mask or score over `i`, `j`, `s`."""
        return self.scope.pair(self.given[name]) if self.has(name) else None

    def cut(self, name: str) -> list[Traced]:
        """A list of values."""
        expr = self.given.get(name)
        if expr is None:
            return []
        items = expr.items if isinstance(expr, ex.ListExpr) else (expr,)
        return [self.scope.traced(self.scope.read(item), item.span) for item in items]

    def expand(self, axis: Axis) -> Axis:
        """An axis with declared sizes replaced by their definitions: for comparing products."""
        return self.scope.expand(axis)

    def size(self, axis: Axis) -> Fraction:
        """The number an axis comes to."""
        return self.scope.size(axis)

    # -- results --------------------------------------------------------------------------------------------

    def memory(self) -> str:
        """The name of this call's memory: `name=`, else the equation's."""
        return self.scope.state_name(self)

    def member(self) -> str:
        """The attribute that holds this call's weights or state (language rule 9)."""
        return self.scope.member_name(self, self.word("name"), self.operation.suffix)

    def add(
        self,
        inputs: Sequence[Traced],
        type: ValueType,
        attrs: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        op: str | None = None,
    ) -> Traced:
        """Add a node with one result."""
        return self.scope.add(op or self.operation.name, inputs, (type,), attrs or {}, self.span, name)[0]

    def add_several(
        self,
        inputs: Sequence[Traced],
        types: Sequence[ValueType],
        attrs: Mapping[str, Any] | None = None,
        *,
        name: str = "",
    ) -> Several:
        """Add a node with several results."""
        return Several(
            tuple(self.scope.add(self.operation.name, inputs, tuple(types), attrs or {}, self.span, name))
        )


def counted(number: int, word: str) -> str:
    """`1 argument`, `2 arguments`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def shape(axes: Sequence[Axis]) -> str:
    """`[n_heads, head_dim]`, as a user would write it."""
    return f"[{', '.join(map(str, axes))}]"


def lift(*rates: str) -> str:
    """The fastest of several rates: what an elementwise result has."""
    order = ("static", "model", "sequence", "token")
    return max(rates, key=order.index) if all(rate in order for rate in rates) else "block"


__all__ = ["Call", "CallSite", "Pair", "counted", "lift", "shape"]
