"""Copies of syntax trees with nodes or names replaced, and constants as nodes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from archc.spec import expressions as ex
from archc.spec.diagnostics import Span
from archc.spec.spec import Static


def rewrite(expr: ex.Expr, change: Callable[[ex.Expr], ex.Expr | None]) -> ex.Expr:
    """A copy with nodes replaced from the outside in; `change` returns None to keep a node."""
    replaced = change(expr)
    if replaced is not None:
        return rewrite(replaced, change) if replaced is not expr else expr
    match expr:
        case ex.Unary():
            return ex.Unary(expr.span, expr.op, rewrite(expr.operand, change))
        case ex.Binary():
            return ex.Binary(expr.span, expr.op, rewrite(expr.left, change), rewrite(expr.right, change))
        case ex.Boolean():
            return ex.Boolean(expr.span, expr.op, tuple(rewrite(v, change) for v in expr.values))
        case ex.Compare():
            return ex.Compare(expr.span, expr.ops, tuple(rewrite(v, change) for v in expr.operands))
        case ex.Conditional():
            return ex.Conditional(expr.span, *(rewrite(child, change) for child in expr.children()))
        case ex.ListExpr():
            return ex.ListExpr(expr.span, tuple(rewrite(v, change) for v in expr.items))
        case ex.Attribute():
            return ex.Attribute(expr.span, rewrite(expr.value, change), expr.name)
        case ex.Subscript():
            return ex.Subscript(expr.span, rewrite(expr.value, change), rewrite(expr.index, change))
        case ex.Call():
            keywords = tuple(ex.Keyword(k.span, k.name, rewrite(k.value, change)) for k in expr.keywords)
            return ex.Call(
                expr.span,
                expr.function,
                expr.function_span,
                tuple(rewrite(v, change) for v in expr.args),
                keywords,
            )
    return expr


def rewrite_names(expr: ex.Expr, replace: Callable[[ex.Name], ex.Expr]) -> ex.Expr:
    """A copy with every name replaced once: what a name is replaced by is not searched again."""
    done: set[int] = set()

    def change(node: ex.Expr) -> ex.Expr | None:
        if id(node) in done or not isinstance(node, ex.Name):
            return node if id(node) in done else None
        found = replace(node)
        keep.append(found)
        done.add(id(found))
        return found

    keep: list[ex.Expr] = []
    return rewrite(expr, change)


def literal(value: Static, span: Span) -> ex.Expr | None:
    """A constant as a syntax node, or None for what has no literal."""
    if isinstance(value, bool):
        return ex.Name(span, "true" if value else "false")
    if value is None:
        return ex.Name(span, "none")
    if isinstance(value, Fraction):
        return ex.Number(span, value)
    if isinstance(value, str):
        return ex.Text(span, value)
    return None
