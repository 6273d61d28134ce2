"""Values that a body does not make itself: those of earlier layers, and the embedding of the token."""

from __future__ import annotations

from archc.elaboration.scope import Scope
from archc.graph.types import ValueType
from archc.graph.values import Value
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Span


def across_layers(scope: Scope, expr: ex.Call) -> Value:
    """`first(v)` and `previous(v)`: an exported value of an earlier layer, same token (rule 11)."""
    if len(expr.args) != 1 or not isinstance(expr.args[0], ex.Name) or expr.keywords:
        raise scope.fail(
            "E337",
            f"`{expr.function}` takes the name of an exported equation",
            expr.span,
            help=f"give the expression a name of its own, export it, and write {expr.function}(name)",
        )
    name = expr.args[0].id
    type_ = scope.context.exported.get(name)
    if type_ is None:
        raise scope.fail(
            "E338",
            f"no earlier layer exports `{name}`",
            expr.span,
            help=f"guard it: `{expr.function}({name}) if site > 0 else ...`"
            if name in {target.name for target in scope.context.body.exports}
            else f"publish it where it is computed: `export: [{name}]`",
        )
    return scope.add("earlier", (), (type_,), {"which": expr.function, "export": name}, expr.span)[0]


def embedding(scope: Scope, span: Span) -> Value:
    """The embedding of the token, readable in every body."""
    return scope.add("embedding", (), (ValueType((Axis.named("d_model"),)),), {}, span)[0]
