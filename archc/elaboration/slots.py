"""Calls of slots and parts: modules of their own, one instance a call or as many as a mixture has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from archc.elaboration.context import Interface
from archc.elaboration.scope import Scope
from archc.graph.calls import counted
from archc.graph.values import Traced, Value
from archc.spec import expressions as ex
from archc.spec.diagnostics import Label, Span


def call_slot(scope: Scope, expr: ex.Call) -> Value:
    """A call of a slot or part: a module of its own."""
    name = expr.function
    interface = scope.context.slots.get(name)
    if interface is None:
        raise scope.fail(
            "E336",
            f"the slot `{name}` is not filled",
            expr.function_span,
            help=f"say what stands there: `{name}: {{use: ...}}`",
        )
    count_inputs(scope, name, interface, len(expr.args), expr.span)
    values = [scope.traced(scope.read(arg), arg.span) for arg in expr.args]
    check_inputs(scope, name, interface, values, expr.args)
    _not_carrying(scope, name, interface, expr.function_span)
    word = expr.keyword("name")
    member = (scope.word(word) if word is not None else None) or name
    if member in scope.builder.slots:
        raise scope.fail(
            "E361",
            f"`{name}` is called twice; each call is an instance of its own",
            expr.span,
            labels=[Label(scope.builder.members[member], "the first one")],
            help=f"name the second: {name}(..., name=...)",
        )
    scope.builder.slots[member] = interface.modules
    scope.builder.members.setdefault(member, expr.span)
    attrs = {
        "modules": interface.modules,
        "shared": bool(interface.shared),
        "slot": name,
    }
    output = interface.output
    if any(value.type.rate == "block" for value in values):
        if not interface.tokenwise:
            raise scope.fail(
                "E382",
                f"`{name}` looks at earlier tokens or at their places, so it cannot take blocks",
                expr.span,
                help="let it hold linear maps, norms and elementwise functions only",
            )
        output = replace(output, rate="block")
    return scope.add("slot", values, (output,), attrs, expr.span, member)[0]


def call_mixture(scope: Scope, expr: ex.Call) -> Value:
    """`mixture(body, x, weights=w)`: as many instances of a slot or part as w has entries (rule 16)."""
    weights_expr = expr.keyword("weights")
    first = expr.args[0] if expr.args else None
    if len(expr.args) != 2 or weights_expr is None or not isinstance(first, ex.Name):
        raise scope.fail(
            "E313",
            "a mixture needs a body, a value and weights",
            expr.span,
            help="write mixture(expert, x, weights=w)",
        )
    interface = scope.context.slots.get(first.id)
    if interface is None or interface.shared:
        raise scope.fail(
            "E336",
            f"`{first.id}` is no slot or part that a mixture can have copies of",
            first.span,
            help=scope.suggest(first.id, list(scope.context.slots)),
        )
    _not_carrying(scope, first.id, interface, first.span)
    value = scope.traced(scope.read(expr.args[1]), expr.args[1].span)
    weights = scope.traced(scope.read(weights_expr), weights_expr.span)
    if weights.type.rate != "token" or len(weights.type.axes) != 1:
        raise scope.fail(
            "E353", "the weights of a mixture have one axis, an entry for each body", weights_expr.span
        )
    word = expr.keyword("name")
    member = (scope.word(word) if word is not None else None) or first.id
    if member in scope.builder.slots:
        raise scope.fail(
            "E361",
            f"`{member}` is used twice; each use is an instance of its own",
            expr.span,
            labels=[Label(scope.builder.members[member], "the first one")],
            help="name the second: mixture(..., name=...)",
        )
    scope.builder.slots[member] = interface.modules
    scope.builder.members.setdefault(member, expr.span)
    attrs = {"modules": interface.modules, "slot": first.id, "count": weights.type.axes[0]}
    return scope.add("mixture", [value, weights], (interface.output,), attrs, expr.span, member)[0]


def count_inputs(scope: Scope, name: str, interface: Interface, given: int, span: Span) -> None:
    """A body is called with a value for each of its inputs."""
    if given != len(interface.inputs):
        raise scope.fail(
            "E310",
            f"`{name}` takes {counted(len(interface.inputs), 'value')}, {given} are given",
            span,
            labels=[Label(interface.result, f"what `{name}` returns")] if interface.result else [],
            help="a body has the inputs that it declares under `inputs:`, else only `x`",
        )


def check_inputs(
    scope: Scope,
    name: str,
    interface: Interface,
    values: Sequence[Traced],
    given: Sequence[ex.Expr],
) -> None:
    """They have the axes that the body declares."""
    for value, axes, arg in zip(values, interface.inputs, given):
        if tuple(map(scope.expand, value.type.axes)) != tuple(map(scope.expand, axes)):
            got, wanted = (", ".join(map(str, shape)) for shape in (value.type.axes, axes))
            raise scope.fail(
                "E352",
                f"`{name}` takes [{wanted}], this is [{got}]",
                arg.span,
                help=f"linear(..., {wanted}) makes one" if "," not in wanted else "",
            )


def _not_carrying(scope: Scope, name: str, interface: Interface, span: Span) -> None:
    """Parts with `before` are evaluated by `sequential` and by nothing else."""
    if interface.carries:
        raise scope.fail(
            "E387",
            f"`{name}` reads the token before, so it is evaluated token by token",
            span,
            help=f"write sequential({name}, ...)",
        )
