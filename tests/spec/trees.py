"""Random syntax trees of the language, and trees without their places, for comparing."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from archc.spec import expressions as ex
from archc.spec.diagnostics import NOWHERE

NAMES = ("a", "b", "n_heads", "head_dim")
NUMBERS = (Fraction(0), Fraction(1), Fraction(2), Fraction(3), Fraction(16), Fraction(1, 2), Fraction(5, 4))


def without_places(node: Any) -> Any:
    """The same tree with every place forgotten."""
    if isinstance(node, tuple):
        return tuple(without_places(item) for item in node)
    if not isinstance(node, ex.Expr | ex.Keyword):
        return node
    changes = {field.name: without_places(getattr(node, field.name)) for field in fields(node)}
    changes.update({name: NOWHERE for name in ("span", "function_span") if name in changes})
    return replace(node, **changes)


def _name(words: tuple[str, ...]) -> st.SearchStrategy[ex.Expr]:
    return st.sampled_from(words).map(lambda word: ex.Name(NOWHERE, word))


def _number() -> st.SearchStrategy[ex.Expr]:
    return st.sampled_from(NUMBERS).map(lambda value: ex.Number(NOWHERE, value))


def arithmetic(operators: tuple[str, ...] = ("+", "-", "*", "/")) -> st.SearchStrategy[ex.Expr]:
    """Sums, products and quotients of names and numbers."""
    return st.recursive(
        _name(NAMES) | _number(),
        lambda inner: (
            st.builds(ex.Binary, st.just(NOWHERE), st.sampled_from(operators), inner, inner)
            | st.builds(ex.Unary, st.just(NOWHERE), st.just("-"), inner)
        ),
        max_leaves=8,
    )


def statics() -> st.SearchStrategy[ex.Expr]:
    """Everything that static arithmetic has; many of these fail, with an error."""

    def grow(inner: st.SearchStrategy[ex.Expr]) -> st.SearchStrategy[ex.Expr]:
        here = st.just(NOWHERE)
        pairs = st.tuples(inner, inner)
        return st.one_of(
            st.builds(ex.Binary, here, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]), inner, inner),
            st.builds(ex.Unary, here, st.sampled_from(["-", "not"]), inner),
            st.builds(ex.Boolean, here, st.sampled_from(["and", "or"]), pairs),
            st.builds(
                lambda op, both: ex.Compare(NOWHERE, (op,), both),
                st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
                pairs,
            ),
            st.builds(ex.Conditional, here, inner, inner, inner),
            st.builds(
                lambda name, argument: ex.Call(NOWHERE, name, NOWHERE, (argument,), ()),
                st.sampled_from(["ceil", "floor", "round", "abs", "sqrt", "exp", "log"]),
                inner,
            ),
            st.builds(
                lambda name, both: ex.Call(NOWHERE, name, NOWHERE, both, ()),
                st.sampled_from(["min", "max", "round_up", "round_down"]),
                pairs,
            ),
        )

    return st.recursive(_name((*NAMES, "true", "false", "none")) | _number(), grow, max_leaves=8)


def expressions() -> st.SearchStrategy[ex.Expr]:
    """Whole equations: static arithmetic and calls with keywords, lists, entries and words."""

    def grow(inner: st.SearchStrategy[ex.Expr]) -> st.SearchStrategy[ex.Expr]:
        keyword = st.builds(lambda value: ex.Keyword(NOWHERE, "over", value), inner)
        return st.one_of(
            st.builds(
                lambda arguments, keywords: ex.Call(
                    NOWHERE, "linear", NOWHERE, tuple(arguments), tuple(keywords)
                ),
                st.lists(inner, max_size=3),
                st.lists(keyword, max_size=1),
            ),
            st.builds(lambda items: ex.ListExpr(NOWHERE, tuple(items)), st.lists(inner, max_size=3)),
            st.builds(lambda index: ex.Subscript(NOWHERE, ex.Name(NOWHERE, "v"), index), inner),
            st.builds(
                ex.Binary,
                st.just(NOWHERE),
                st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]),
                inner,
                inner,
            ),
            st.builds(lambda a, b, c: ex.Compare(NOWHERE, ("<", "<="), (a, b, c)), inner, inner, inner),
            st.just(ex.Attribute(NOWHERE, ex.Name(NOWHERE, "rope"), "theta")),
            st.just(ex.Text(NOWHERE, "after_gate")),
        )

    return st.recursive(statics(), grow, max_leaves=10)
