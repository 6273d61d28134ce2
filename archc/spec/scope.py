"""The numbers of a use: parameters and sizes worked out, and held against their declarations."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.expressions import Expr
from archc.spec.fields import noun, suggestion
from archc.spec.spec import Body, Param, Static, Use
from archc.spec.statics import evaluate
from archc.spec.values import STATICS, declared, fits, free_names, mistyped, show

# What has one value per layer: expressions over these are checked where layers are known.
PER_LAYER = frozenset({"layer", "site", "n_sites"})


MAX_CHAIN = 32  # numbers that are worked out from each other in a row


class Unknown(Exception):
    """A value that differs from layer to layer, or that an error already reported left open."""


class Scope:
    """The static names of one use, worked out on demand."""

    def __init__(self, use: Use, statics: Mapping[str, Static], report: Reporter) -> None:
        self.use = use
        self.report = report
        self._statics = statics
        self._values: dict[str, Static] = {}
        self._open: list[str] = []
        self._circles: set[str] = set()
        self._failed: set[str] = set()

    def value(self, name: str) -> Static:
        """The value of a parameter, a size or a static of the model. Raises `Unknown` where it has none."""
        if name in self._values:
            return self._values[name]
        body = self.use.body
        source: Expr | Static
        if name in body.params and name in self.use.arguments:
            source = self.use.arguments[name]
        elif name in body.sizes:
            source = body.sizes[name]
        elif name in self._statics:
            source = self._statics[name]
        else:
            raise Unknown(name)
        if name in self._failed:
            raise Unknown(name)
        if isinstance(source, Expr):
            try:
                source = self._evaluated(name, source)
            except Unknown:
                self._failed.add(name)
                raise
        self._values[name] = source
        return source

    def _evaluated(self, name: str, expr: Expr) -> Static:
        if name in self._open:
            circle = [*self._open[self._open.index(name) :], name]
            if self._circles & set(circle):
                raise Unknown(name)
            self._circles.update(circle)
            self.report.error(
                "E230",
                f"{' -> '.join(f'`{each}`' for each in circle)} depend on each other",
                expr.span,
                help="give one of them a value",
            )
            raise Unknown(name)
        if len(self._open) >= MAX_CHAIN:
            self.report.error(
                "E230",
                f"more than {MAX_CHAIN} numbers depend on each other in a row",
                self.use.body.span,
                help="give one of them a value",
            )
            raise Unknown(name)
        self._open.append(name)
        try:
            return self.evaluate(expr)
        finally:
            self._open.pop()

    def evaluate(self, expr: Expr) -> Static:
        """The value of an expression over the names of this scope. Raises `Unknown` where it has none."""
        found = Reporter()
        try:
            value = evaluate(expr, self.value, found)
        except RecursionError:
            self.report.error(
                "E230", "these numbers are nested too deeply", expr.span, help="give one of them a value"
            )
            raise Unknown from None
        for each in found.diagnostics:
            self.report.error(
                each.code, each.message, each.span, note=each.note, help=each.help, labels=each.labels
            )
        if found.diagnostics:
            raise Unknown
        return value


def check_use(use: Use, places: Mapping[str, Span], statics: Mapping[str, Static], report: Reporter) -> None:
    """Report every argument, default and size of a use that its declaration forbids.

    `places` says where the arguments that a user wrote stand; what defaults cause is reported at the use.
    """
    body = use.body
    for argument in use.arguments.values():
        if isinstance(argument, Expr) and not known_names(argument, body, report):
            return
    scope = Scope(use, statics, report)
    before = len(report.diagnostics)
    for name, param in body.params.items():
        if param.type in ("axes", "function", "any"):
            continue
        try:
            _check_param(param, scope.value(name), places.get(name, use.span), scope, places, report)
        except Unknown:
            continue
    for name, expr in body.sizes.items() if len(report.diagnostics) == before else ():
        try:
            _check_size(name, expr, scope.value(name), scope, places, report)
        except Unknown:
            continue


def known_names(expr: Expr, body: Body, report: Reporter) -> bool:
    """Whether an expression over static names uses only names that the body has; reports what it has not."""
    known = {*body.params, *body.sizes, *STATICS}
    good = True
    for node in free_names(expr):
        if node.id not in known:
            good = False
            report.error(
                "E228",
                f"`{node.id}` is not known here",
                node.span,
                note=f"an argument is written in the names of {noun(body.kind)} `{body.name}`",
                help=suggestion(node.id, known, "known are"),
            )
    return good


def _check_param(
    param: Param, value: Static, span: Span, scope: Scope, places: Mapping[str, Span], report: Reporter
) -> None:
    if not fits(value, param):
        mistyped(value, param, span, report)
        return
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, Fraction | float):
            continue
        if param.minimum is not None and number < param.minimum:
            report.error(
                "E223",
                f"`{param.name}` is {show(number)}, below its minimum {show(param.minimum)}",
                span,
                labels=declared(param),
            )
        if param.maximum is not None and number > param.maximum:
            report.error(
                "E223",
                f"`{param.name}` is {show(number)}, above its maximum {show(param.maximum)}",
                span,
                labels=declared(param),
            )
    if param.divides is not None and isinstance(value, Fraction):
        whole = scope.evaluate(param.divides)
        if isinstance(whole, Fraction) and (value == 0 or (whole / value).denominator != 1):
            names = [node.id for node in free_names(param.divides)]
            labels = [Label(places[name], f"`{name}` is {show(whole)}") for name in names if name in places]
            written = names[0] if len(names) == 1 else "a number"
            report.error(
                "E224",
                f"`{param.name}` is {show(value)} and does not divide `{written}`, which is {show(whole)}",
                span,
                labels=[*labels, *declared(param)],
            )


def _check_size(
    name: str, expr: Expr, value: Static, scope: Scope, places: Mapping[str, Span], report: Reporter
) -> None:
    if isinstance(value, Fraction) and not isinstance(value, bool) and value.denominator == 1 and value >= 0:
        return
    body = scope.use.body
    culprits = [node.id for node in free_names(expr)]
    place = next((places[each] for each in culprits if each in places), scope.use.span)
    numbers = []
    for each in dict.fromkeys(culprits):
        numbers.append(f"{each} is {show(scope.value(each))}")
    report.error(
        "E227",
        f"size `{name}` of {noun(body.kind)} `{body.name}` is {show(value)}, and not a whole number",
        place,
        note=", ".join(numbers),
        labels=[Label(expr.span, f"`{name}` is worked out here")],
    )
