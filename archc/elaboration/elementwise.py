"""Elementwise operators and functions: operands align by the names of their axes."""

from __future__ import annotations

from collections.abc import Sequence

from archc.elaboration.scope import Scope
from archc.graph import functions
from archc.graph.calls import counted, shape
from archc.graph.values import Abandon, StaticValue, Traced, Value
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label, Span


def operator(scope: Scope, whole: ex.Binary) -> Value:
    """An arithmetic operator: a static where both sides are."""
    values = [scope.read(whole.left), scope.read(whole.right)]
    if all(isinstance(value, StaticValue) for value in values):
        first, second = (value.expr for value in values if isinstance(value, StaticValue))
        return StaticValue(ex.Binary(whole.span, whole.op, first, second))
    name = functions.OPERATORS[whole.op]
    return elementwise(scope, name, values, whole.span, (whole.left.span, whole.right.span))


def compare(scope: Scope, expr: ex.Compare) -> Value:
    """A comparison; one of several operands compares neighbours."""
    values = [scope.read(operand) for operand in expr.operands]
    if all(isinstance(value, StaticValue) for value in values):
        operands = tuple(value.expr for value in values if isinstance(value, StaticValue))
        return StaticValue(ex.Compare(expr.span, expr.ops, operands))
    parts: list[Value] = [
        elementwise(scope, functions.COMPARISONS[op], [values[k], values[k + 1]], expr.span)
        for k, op in enumerate(expr.ops)
    ]
    found = parts[0]
    for part in parts[1:]:
        found = elementwise(scope, "logical_and", [found, part], expr.span)
    return found


def boolean(scope: Scope, expr: ex.Boolean) -> Value:
    """`and` or `or` of several values."""
    values = [scope.read(value) for value in expr.values]
    if all(isinstance(value, StaticValue) for value in values):
        operands = tuple(value.expr for value in values if isinstance(value, StaticValue))
        return StaticValue(ex.Boolean(expr.span, expr.op, operands))
    found = values[0]
    for value in values[1:]:
        found = elementwise(scope, f"logical_{expr.op}", [found, value], expr.span)
    return found


def call_function(scope: Scope, name: str, expr: ex.Call) -> Value:
    """A call of an elementwise function: a static where it can be computed now."""
    function = functions.FUNCTIONS[name]
    if expr.keywords:
        raise scope.fail(
            "E311",
            f"`{name}` has no argument `{expr.keywords[0].name}`",
            expr.keywords[0].span,
            help=f"`{name}` takes {counted(function.least, 'value')} and nothing by name",
        )
    if not function.least <= len(expr.args) <= function.most:
        wanted = (
            str(function.least) if function.least == function.most else f"{function.least} to {function.most}"
        )
        raise scope.fail(
            "E314",
            f"`{name}` takes {wanted} argument{'' if wanted == '1' else 's'}, {len(expr.args)} are given",
            expr.span,
        )
    values = [scope.read(arg) for arg in expr.args]
    if function.static and all(isinstance(value, StaticValue) for value in values):
        args = tuple(value.expr for value in values if isinstance(value, StaticValue))
        return StaticValue(ex.Call(expr.span, name, expr.function_span, args, ()))
    return elementwise(scope, name, values, expr.span, [arg.span for arg in expr.args])


def elementwise(
    scope: Scope, name: str, values: Sequence[Value], span: Span, places: Sequence[Span] = ()
) -> Traced:
    """An elementwise operation: operands align by axis name and one must hold all axes (rule 2)."""
    operands = [scope.traced(value, places[k] if places else span) for k, value in enumerate(values)]
    widest = max(operands, key=lambda operand: len(operand.type.axes))
    for operand in operands:
        extra = [axis for axis in operand.type.axes if axis not in widest.type.axes]
        if extra:
            raise _misaligned(scope, widest, operand, span)
    type_ = functions.infer(name, [operand.type for operand in operands])
    return scope.add("elementwise", operands, (type_,), {"function": name}, span)[0]


def _misaligned(scope: Scope, widest: Traced, operand: Traced, span: Span) -> Abandon:
    """Operands of which none holds all axes of the other; the fault may lie in the body of a slot."""
    shapes = shape(widest.type.axes), shape(operand.type.axes)
    for value, other in ((widest, operand), (operand, widest)):
        node = scope.builder.nodes[value.ref.node]
        interface = scope.context.slots.get(str(node.attrs.get("slot"))) if node.op == "slot" else None
        if interface is not None and other.type.axes == (Axis.named("d_model"),):
            return scope.fail(
                "E352",
                f"this gives {shape(value.type.axes)}, and {scope.context.body.kind} "
                f"`{scope.context.body.name}` adds it to {shape(other.type.axes)}",
                interface.result or span,
                labels=[Label(span, "where they meet")],
                help="end with linear(..., d_model)",
            )
    note = "operands align by axis name, and one must hold all axes of the other"
    sizes = [[scope.evaluate(axis.expr()) for axis in side.type.axes] for side in (widest, operand)]
    if sizes[0] == sizes[1]:
        note += "; that they are of equal size here is chance"
    width = (Axis.named("d_model"),) in (widest.type.axes, operand.type.axes)
    return scope.fail(
        "E350",
        f"the axes {shapes[0]} and {shapes[1]} do not align",
        span,
        note=note,
        help="linear(..., d_model) leads back to the width of the model"
        if width
        else "write both with the same axes; reshape, select and repeat change axes, outer(a, b) keeps both",
    )
