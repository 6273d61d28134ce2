"""Parts that read their own values of the token before, and the call that evaluates them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archc.elaboration.scope import Scope
from archc.elaboration.slots import check_inputs, count_inputs
from archc.graph.calls import Call, shape
from archc.graph.types import Ref, ValueType
from archc.graph.values import Traced, Value
from archc.operations import registry
from archc.spec.diagnostics import Label, Span
from archc.spec.spec import Body
from archc.spec.unparse import unparse


def before(scope: Scope, call: Call, attrs: Mapping[str, Any], type_: ValueType) -> Traced:
    """What an equation of this part was at the token before: one node for all calls with its name."""
    name = attrs["equation"]
    if scope.context.body.kind != "part" or scope.depth:
        call.fail(
            "E385",
            "only the equations of a part can read the token before",
            note="a part that `sequential` evaluates token by token",
            help="move what depends on the token before into a part: parts: {cell: {inputs: ..., body: ...}}",
        )
    if name not in scope.body_equations():
        call.fail(
            "E303",
            f"this part has no equation `{name}`",
            call.span_of("equation"),
            help=scope.suggest(name, sorted(scope.body_equations()))
            or "before(h, [axes]) is what the equation `h` of this part was at the token before",
        )
    first = scope.context.carried.get(name)
    if first is not None:
        node = next(
            n for n in scope.context.builder.nodes if n.op == "before" and n.attrs["equation"] == name
        )
        starts = [str(a) if isinstance(a, str) else unparse(a) for a in (node.attrs["start"], attrs["start"])]
        if node.type.axes != type_.axes or starts[0] != starts[1]:
            call.fail(
                "E386",
                f"`{name}` is read twice of the token before, with other axes or another start",
                labels=[Label(first.span, "the first one")],
                help="write both alike, or give the value a name of its own and read that twice",
            )
        return Traced(Ref(node.id), node.type)
    value = call.add([], type_, attrs)
    scope.context.carried[name] = call
    return value


def check_carried(scope: Scope) -> None:
    """What the next token reads has the axes that it reads; nothing in between looks at other tokens."""
    for name, call in scope.context.carried.items():
        value = scope.values.get(name)
        if value is None:
            continue  # its own error is recorded
        axes = call.axes("axes") or ()
        if not isinstance(value, Traced) or value.type.rate != "token" or value.type.axes != axes:
            has = shape(value.type.axes) if isinstance(value, Traced) else "a number"
            if isinstance(value, Traced) and value.type.rate != "token":
                has = "the same for every token"
            scope.context.report.error(
                "E386",
                f"`{name}` is read of the token before as {shape(axes)}, and is {has}",
                call.span,
                labels=[Label(_place_of(scope.context.body, name), f"`{name}` is defined here")],
                note="the next token reads what this one has computed",
                help=f"write before({name}, {has}), or make `{name}` {shape(axes)}"
                if has.startswith("[")
                else "",
            )
    for node in scope.context.builder.nodes if scope.context.carried else ():
        operation = registry.operations()[node.op]
        if not operation.tokenwise or node.op == "buffer" or node.attrs.get("share") is not None:
            scope.context.report.error(
                "E388",
                f"`{node.op}` shares its weight with others, which a part cannot that is evaluated token by token"
                if operation.tokenwise
                else f"`{node.op}` cannot stand in a part that is evaluated token by token",
                node.span,
                note="such a part sees one token, its own values of the token before, and its own weights",
                help="compute it outside for all tokens, and give it to the part as an input",
            )


def call_sequential(scope: Scope, call: Call, values: Sequence[Traced]) -> Value:
    """`sequential(part, u, ...)`: the part at each token, after the token before it."""
    name = call.word("part") or ""
    interface = scope.context.slots.get(name)
    if interface is None or name not in scope.context.body.parts:
        call.fail(
            "E336",
            f"`{name}` is no part of this body",
            call.span_of("part"),
            help=scope.suggest(name, list(scope.context.body.parts)) or "declare it under `parts:`",
        )
    if not interface.carries:
        call.fail(
            "E387",
            f"`{name}` reads nothing of the token before, so nothing has to wait for it",
            call.span_of("part"),
            note="sequential evaluates a part token by token, which is slow",
            help=f"call it for all tokens at once, `{name}(...)`, or read an equation with before(name, [axes])",
        )
    count_inputs(scope, name, interface, len(values), call.span)
    check_inputs(scope, name, interface, values, call.rest)
    member = call.word("name") or name
    if member in scope.builder.slots:
        call.fail(
            "E361",
            f"`{member}` is used twice; each use is an instance of its own",
            labels=[Label(scope.builder.members[member], "the first one")],
            help="name the second: sequential(..., name=...)",
        )
    scope.builder.slots[member] = interface.modules
    scope.builder.members.setdefault(member, call.span)
    attrs = {"modules": interface.modules, "slot": name}
    return scope.add("sequential", values, (interface.output,), attrs, call.span, member)[0]


def _place_of(body: Body, name: str) -> Span:
    """Where an equation is defined."""
    return next(t.span for e in body.equations for t in e.targets if t.name == name)
