"""Masks and scores: expressions over pairs of tokens, `i` and `j`, and the score `s`."""

from __future__ import annotations

from collections.abc import Mapping

from archc.elaboration.scope import CONSTANTS, Scope
from archc.graph import functions as elementwise
from archc.graph.calls import Pair
from archc.graph.values import StaticValue, Traced
from archc.spec import expressions as ex
from archc.spec.rewrite import rewrite_names

PAIR_NAMES = frozenset({"i", "j", "s"})


def read_pair(scope: Scope, expr: ex.Expr) -> Pair | None:
    """A mask or score: statics substituted, traced names collected."""
    if isinstance(expr, ex.Conditional):
        return read_pair(scope, expr.then if scope.decide(expr.test) else expr.otherwise)
    if isinstance(expr, ex.Name) and expr.id in ("true", "s"):
        return None
    found: dict[str, Traced] = {}

    def replace(name: ex.Name) -> ex.Expr:
        if name.id in PAIR_NAMES or name.id in CONSTANTS:
            return name
        value = scope.read(name)
        if isinstance(value, StaticValue):
            return value.expr
        found[name.id] = scope.traced(value, name.span)
        return name

    resolved = rewrite_names(scope.decided(expr), replace)
    for node in resolved.walk():
        if isinstance(node, ex.Call) and node.function not in elementwise.FUNCTIONS:
            raise scope.fail(
                "E302" if node.function in PAIR_NAMES else "E305",
                f"`{node.function}` is not a function"
                if node.function in PAIR_NAMES
                else f"`{node.function}` cannot stand in a mask or score",
                node.function_span,
                help="elementwise functions can: exp, tanh, abs, min, max, where, ...",
            )
    _check_places(scope, resolved, found)
    return Pair(resolved, tuple(found.items()))


def _check_places(scope: Scope, expr: ex.Expr, found: Mapping[str, Traced]) -> None:
    """A value with tokens is read at the query, `v[i]`, or at the key, `v[j]`; a value of the model is not."""
    placed = [node for node in expr.walk() if isinstance(node, ex.Subscript)]
    for node in placed:
        at = node.index.id if isinstance(node.index, ex.Name) else ""
        of = node.value.id if isinstance(node.value, ex.Name) else ""
        if of not in found or found[of].type.rate != "token" or at not in ("i", "j"):
            raise scope.fail(
                "E380",
                "here only a value with tokens has an index, and it is `i` or `j`",
                node.span,
                help="v[i] is the value at the query, v[j] the value at the key",
            )
    inside = {id(node.value) for node in placed}
    for name in expr.walk():
        if isinstance(name, ex.Name) and name.id in found and id(name) not in inside:
            if found[name.id].type.rate not in ("static", "model"):
                raise scope.fail(
                    "E380",
                    f"`{name.id}` differs from token to token: say at which of the two",
                    name.span,
                    help=f"{name.id}[i] is the value at the query, {name.id}[j] the value at the key",
                )
