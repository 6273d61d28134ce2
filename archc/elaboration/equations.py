"""The equations of one namespace: their order, and reading one of them."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush

from archc.elaboration.scope import Scope
from archc.graph.calls import COMMON_KEYWORDS, counted
from archc.graph.values import Abandon, Several, Value
from archc.operations import registry
from archc.spec import expressions as ex
from archc.spec.spec import Equation
from archc.spec.unparse import unparse


def in_order(equations: Mapping[str, Equation], scope: Scope, wanted: list[str]) -> list[Equation]:
    """The equations that this layer reaches, each after those it reads. Records a cycle as an error."""
    pending = [name for name in wanted if name in equations]
    reads: dict[str, set[str]] = {name: set() for name in pending}
    while pending:
        name = pending.pop()
        for read in _names_read(equations[name].expr, scope):
            if read in equations:
                reads[name].add(read)
                if read not in reads:
                    reads[read] = set()
                    pending.append(read)
    order = list(equations)
    sorter = TopologicalSorter(reads)
    try:
        sorter.prepare()
    except CycleError as error:
        _report_cycle(scope, list(error.args[1])[:-1], equations)
        return []
    ready: list[int] = []
    found: dict[int, Equation] = {}
    while sorter.is_active():  # of those that can come next, the first one written
        for name in sorter.get_ready():
            heappush(ready, order.index(name))
        name = order[heappop(ready)]
        found.setdefault(id(equations[name]), equations[name])
        sorter.done(name)
    return list(found.values())


def _report_cycle(scope: Scope, cycle: list[str], equations: Mapping[str, Equation]) -> None:
    first = min(cycle, key=list(equations).index)
    at = cycle.index(first)
    path = " -> ".join([*reversed([*cycle[at + 1 :], *cycle[: at + 1]]), first])
    scope.report.error(
        "E333",
        f"the equations run in a circle: {path}",
        equations[first].targets[0].span,
        note="an equation may not read its own result, directly or through others",
        help="a dependence on earlier tokens is a recurrence, a scan or a shift",
    )


def _names_read(expr: ex.Expr, scope: Scope) -> list[str]:
    """Names an expression reads at this layer: only the taken branches of static conditions count."""
    match expr:
        case ex.Name():
            return [expr.id]
        case ex.Conditional():
            names = _names_read(expr.test, scope)
            if any(name in scope.body_equations() for name in names):
                return names + _names_read(expr.then, scope) + _names_read(expr.otherwise, scope)
            try:
                branch = expr.then if scope.decide(expr.test) else expr.otherwise
            except Abandon:
                return []
            return _names_read(branch, scope)
        case ex.Call() if expr.function in ("first", "previous"):
            return []
        case ex.Call():
            return [name for child in _looked_up(expr) for name in _names_read(child, scope)]
    return [name for child in expr.children() for name in _names_read(child, scope)]


def _looked_up(expr: ex.Call) -> list[ex.Expr]:
    """The arguments of a call in which names stand for values: not the words that the operation declares."""
    operation = registry.operations().get(expr.function)
    if operation is None:
        return [*expr.args, *(k.value for k in expr.keywords if k.name not in COMMON_KEYWORDS)]
    words = {a.name for a in operation.signature.arguments if a.kind in ("word", "words")} | set(
        COMMON_KEYWORDS
    )
    positional = [a.name for a in operation.signature.arguments if not a.keyword_only]
    found = (
        [
            arg
            for index, arg in enumerate(expr.args)
            if positional[min(index, len(positional) - 1)] not in words
        ]
        if positional
        else list(expr.args)
    )
    return [*found, *(k.value for k in expr.keywords if k.name not in words)]


def read_equation(equation: Equation, scope: Scope) -> None:
    if scope.depth == 0:
        scope.equation = equation.targets[0].name
    else:
        scope.local = equation.targets[0].name
    scope.targets = len(equation.targets)
    try:
        value = scope.read(equation.expr)
        if scope.depth == 0:
            _remember(equation, scope)
        _assign(equation, value, scope)
    except Abandon:
        for target in equation.targets:
            scope.values[target.name] = None


def _remember(equation: Equation, scope: Scope) -> None:
    """The equation as it stands at this layer, unless it only renames another."""
    decided = scope.decided(equation.expr)
    if isinstance(decided, ex.Name) and decided.id in scope.body_equations():
        return
    names = ", ".join(target.name for target in equation.targets)
    scope.context.texts.append(f"{names}: {unparse(decided)}")


def _assign(equation: Equation, value: Value, scope: Scope) -> None:
    count = len(value.items) if isinstance(value, Several) else 1
    if count != len(equation.targets):
        names = ", ".join(target.name for target in equation.targets)
        raise scope.fail(
            "E334",
            f"`{names}` {'are' if len(equation.targets) > 1 else 'is'} "
            f"{counted(len(equation.targets), 'value')}, the equation has {count}",
            equation.span,
            help="name every result, separated by commas: `a, b: ...`"
            if count > 1
            else "one name stands before the colon: `a: ...`",
        )
    items = value.items if isinstance(value, Several) else (value,)
    for target, item in zip(equation.targets, items):
        scope.values[target.name] = item
