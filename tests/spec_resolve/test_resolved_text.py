"""The resolved text loads to the same spec, is stable, and stands by itself; expressions survive as text."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from helpers import BLOCKS, MODEL, content, spec_of
from hypothesis import given
from hypothesis import strategies as st

from archc.spec.diagnostics import NOWHERE, Reporter
from archc.spec.expressions import (
    Attribute,
    Binary,
    Boolean,
    Call,
    Compare,
    Conditional,
    Expr,
    Keyword,
    ListExpr,
    Name,
    Number,
    Subscript,
    Text,
    Unary,
)
from archc.spec.parser import parse_expression_text
from archc.spec.resolve import load
from archc.spec.resolved_text import resolved_text
from archc.spec.unparse import unparse
from tests.support.slow import mostly_slow

SPECS = sorted(
    path
    for kind in ("mixers", "mlps", "functions", "blocks", "models")
    for path in (Path(__file__).parents[2] / "specs" / kind).glob("*.yaml")
)

EVERYTHING = (
    MODEL.replace(
        "      scale:",
        """      kinds: {type: choice, of: [none, head], default: none}
      gains: {type: list, of: number, length: 2, default: [1, 1/3]}
      rope:
        type: mapping
        default: none
        entries: {theta: {type: number}, kind: {type: text, default: "a, b"}}
      free: none
      bound: {type: number, default: .inf, max: .inf, help: "a: b"}
      group: {type: int, default: 2, divides: "max(n_heads, 2)"}
      scale:""".replace(", max: .inf", ""),
    )
    + """
functions:
  lifted:
    inputs: {u: "[..., n]", w: "[n]"}
    params: {rank: {type: int}, out: {type: axes}}
    body:
      y: u * w
init: normal(0, 0.02)
shared:
  S: {use: wide, init: zeros}
blocks:
  pre_norm:
    mixer:
      use: mix
      kinds: head
      gains: [1e-6, -2]
      rope: {theta: 1e6}
      free: 8/3
      bound: -.inf
      scale: head_dim ** -0.5
    other: {shared: S}
    body:
      h, i1: lifted(x, x)
      y: x + mixer(norm(h)) + other(h) * (2 if layer % 2 == 0 and not site > 1 else -1)
  b:
    block: sandwich_norm
    mixer:
      use: mix
      body:
        o: v * tanh(g)
    mlp:
      body:
        y: linear(x, d_model)
  c: {use: parallel, mixer: {use: mix}, mlp: {use: wide}}
layers: {default: c, pre_norm: [0, 3], b: 1}
"""
)


def test_everything_comes_back() -> None:
    spec = spec_of(EVERYTHING)
    text = resolved_text(spec)
    again = spec_of(text)
    assert content(again) == content(spec)
    assert resolved_text(again) == text


@pytest.mark.parametrize("path", mostly_slow(SPECS, 5), ids=lambda path: path.stem)
def test_what_ships_comes_back(path: Path) -> None:
    report = Reporter()
    spec = load(path, report)
    assert spec is not None, report.diagnostics
    text = resolved_text(spec)
    assert content(spec_of(text)) == content(spec)
    assert str(Path.cwd()) not in text


def test_it_needs_no_library_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text(MODEL + BLOCKS + "layers: [3 a, 1 b]\n")
    text = resolved_text(spec_of("extends: base.yaml\nblocks: {b: {mixer: {n_heads: 8}}}\n", tmp_path))
    assert "extends" not in text and "n_heads: 8" in text
    monkeypatch.setattr("archc.spec.library.Library._folders", lambda self: iter(()))
    assert content(spec_of(text)) is not None


def test_a_change_shows() -> None:
    changed = EVERYTHING.replace("free: 8/3", "free: 7/3")
    assert resolved_text(spec_of(changed)) != resolved_text(spec_of(EVERYTHING))


_NAMES = st.sampled_from(["a", "b", "x1", "long_name"]).map(lambda name: Name(NOWHERE, name))
_NUMBERS = st.one_of(
    st.integers(0, 10**6).map(Fraction),
    st.sampled_from([Fraction(1, 10), Fraction(5, 4), Fraction(1, 10**6), Fraction(3, 2**9)]),
).map(lambda value: Number(NOWHERE, value))
_WORDS = st.sampled_from(["half", "before gate"]).map(lambda word: Text(NOWHERE, word))


def _larger(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    pair = st.tuples(inner, inner)
    few = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        st.builds(
            lambda op, p: Binary(NOWHERE, op, *p),
            st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]),
            pair,
        ),
        st.builds(lambda op, e: Unary(NOWHERE, op, e), st.sampled_from(["-", "not"]), inner),
        st.builds(lambda op, e: Boolean(NOWHERE, op, e), st.sampled_from(["and", "or"]), few),
        st.builds(
            lambda ops, e: Compare(NOWHERE, ops[: len(e) - 1], e),
            st.tuples(*[st.sampled_from(["<", "<=", ">", ">=", "==", "!="])] * 2),
            few,
        ),
        st.builds(lambda t, p: Conditional(NOWHERE, t, *p), inner, pair),
        st.builds(lambda e: ListExpr(NOWHERE, e), few),
        st.builds(lambda e, k: Call(NOWHERE, "f", NOWHERE, e, (Keyword(NOWHERE, "k", k),)), few, inner),
        st.builds(lambda n: Attribute(NOWHERE, n, "part"), _NAMES),
        st.builds(lambda n, i: Subscript(NOWHERE, n, i), _NAMES, _NUMBERS),
    )


@given(st.recursive(st.one_of(_NAMES, _NUMBERS, _WORDS), _larger, max_leaves=12))
def test_text_of_an_expression_parses_to_the_same_tree(expr: Expr) -> None:
    report = Reporter()
    parsed = parse_expression_text(unparse(expr), NOWHERE, report)
    if (
        parsed is None
    ):  # the parser forbids what has no meaning: a nested `not` in a sum, a list in arithmetic
        assert report.diagnostics and not {each.code for each in report.diagnostics} & {"E120", "E121"}
        return
    assert content(parsed) == content(expr)
