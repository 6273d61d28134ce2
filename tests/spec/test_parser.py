"""Equations as trees: Python's syntax with true places, and the mistakes that have an error of their own."""

from __future__ import annotations

import ast
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archc.spec import expressions as ex
from archc.spec.axis_text import text as write
from archc.spec.diagnostics import NOWHERE, Reporter, Span
from archc.spec.names import MODULE_ATTRIBUTES, RESERVED, TAKEN
from archc.spec.parser import (
    check_name,
    check_weight_name,
    parse_axes,
    parse_equation,
    parse_expression_text,
    parse_targets,
)
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence
from archc.spec.yaml_reader import parse
from tests.spec.trees import expressions, without_places

REPOSITORY = Path(__file__).resolve().parents[2]
START = Span("s", 1, 1, 1, 1)


def _tree(text: str) -> ex.Expr:
    report = Reporter()
    found = parse_expression_text(text, START, report)
    assert found is not None, report.diagnostics
    return without_places(found)


def _codes(text: str) -> list[tuple[str, int]]:
    report = Reporter()
    found = parse_expression_text(text, START, report)
    assert (found is None) == bool(report.diagnostics)
    return [(each.code, each.span.column) for each in report.diagnostics]


def _entry(text: str) -> tuple[YScalar, YNode]:
    report = Reporter()
    node = parse(text, "s", report)
    assert isinstance(node, YMapping) and not report.diagnostics
    return node.entries[0]


def _equations(node: YNode) -> list[tuple[YScalar, YNode]]:
    if isinstance(node, YSequence):
        return [found for item in node.items for found in _equations(item)]
    if isinstance(node, YScalar):
        return []
    body = node.get("body")
    found = list(body.entries) if isinstance(body, YMapping) else []
    return found + [each for _, value in node.entries for each in _equations(value)]


def test_the_library_parses_and_every_name_stands_where_it_says() -> None:
    names = targets = 0
    for path in sorted((REPOSITORY / "specs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        report = Reporter()
        node = parse(text, path.name, report)
        assert node is not None
        lines = text.split("\n")
        for key, value in _equations(node):
            tree = parse_equation(value, report)
            assert not report.diagnostics, report.diagnostics
            assert tree is not None
            for part in tree.walk():
                span, word = part.span, ""
                if isinstance(part, ex.Name):
                    word = part.id
                elif isinstance(part, ex.Call):
                    span, word = part.function_span, part.function
                else:
                    continue
                assert span.line == span.end_line
                assert lines[span.line - 1][span.column - 1 : span.end_column - 1] == word
                names += 1
            for target in parse_targets(key, report):
                assert (
                    lines[target.span.line - 1][target.span.column - 1 : target.span.end_column - 1]
                    == target.name
                )
                targets += 1
    assert names > 500 and targets > 100


@given(expressions())
def test_a_tree_written_out_parses_to_the_same_tree(tree: ex.Expr) -> None:
    first = _tree(write(tree))
    assert _tree(write(first)) == first
    assert write(first) == write(tree)


@given(expressions())
def test_structure_is_that_of_python(tree: ex.Expr) -> None:
    """Operators and calls nest as in Python's own tree of the same text."""

    def shape(node: ex.Expr) -> object:
        match node:
            case ex.Binary():
                return ("b", shape(node.left), shape(node.right))
            case ex.Unary():
                return ("u", shape(node.operand))
            case ex.Boolean():
                return ("o", *map(shape, node.values))
            case ex.Compare():
                return ("c", *map(shape, node.operands))
            case ex.Conditional():
                return ("i", shape(node.test), shape(node.then), shape(node.otherwise))
            case ex.Call():
                return ("f", *map(shape, node.children()))
            case ex.ListExpr():
                return ("l", *map(shape, node.items))
            case ex.Subscript():
                return ("s", shape(node.value), shape(node.index))
            case ex.Attribute():
                return ("a", shape(node.value))
        return "x"

    def python(node: ast.expr) -> object:
        match node:
            case ast.BinOp():
                return ("b", python(node.left), python(node.right))
            case ast.UnaryOp():
                return ("u", python(node.operand))
            case ast.BoolOp():
                return ("o", *map(python, node.values))
            case ast.Compare():
                return ("c", python(node.left), *map(python, node.comparators))
            case ast.IfExp():
                return ("i", python(node.test), python(node.body), python(node.orelse))
            case ast.Call():
                return ("f", *map(python, node.args), *(python(keyword.value) for keyword in node.keywords))
            case ast.List():
                return ("l", *map(python, node.elts))
            case ast.Subscript():
                return ("s", python(node.value), python(node.slice))
            case ast.Attribute():
                return ("a", python(node.value))
        return "x"

    text = write(tree)
    assert shape(_tree(text)) == python(ast.parse(text, mode="eval").body)


def test_pipes_are_calls() -> None:
    assert _tree("linear(x, [n]) | conv1d(4, bias=true) | silu") == _tree(
        "silu(conv1d(linear(x, [n]), 4, bias=true))"
    )
    assert _tree("x * g | silu") == _tree("silu(x * g)")
    assert _tree("-x | f if c else y | g") == _tree("f(-x) if c else g(y)")
    assert _tree("(x | silu) * g") == _tree("silu(x) * g")
    assert _tree("(x | f) < 3") == _tree("f(x) < 3")


def test_binding_is_pythons() -> None:
    assert _tree("-x ** 2") == _tree("-(x ** 2)")
    assert _tree("a ** b ** c") == _tree("a ** (b ** c)")
    assert _tree("2 if c else 1 * x") == _tree("2 if c else (1 * x)")
    assert _tree("not a and b or c") == _tree("((not a) and b) or c")
    chain = _tree("0 <= i - j < w")
    assert isinstance(chain, ex.Compare) and chain.ops == ("<=", "<")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", Fraction(1, 10)),
        ("1e-6", Fraction(1, 10**6)),
        ("1.5e3", Fraction(1500)),
        (".5", Fraction(1, 2)),
        ("2.", Fraction(2)),
        ("0", Fraction(0)),
        ("00.5", Fraction(1, 2)),
        ("1.0000000000000000001", 1 + Fraction(1, 10**19)),
    ],
)
def test_numbers_are_exact(text: str, value: Fraction) -> None:
    assert _tree(text) == ex.Number(NOWHERE, value)


@pytest.mark.parametrize(
    ("text", "code", "column"),
    [
        ("x | silu * g", "E125", 5),
        ("x | 3", "E125", 5),
        ("x | true", "E125", 5),
        ("i - j < w | j < n", "E125", 9),
        ("x | silu > 0", "E125", 1),
        ("0 <= i - j & i - j < w", "E124", 12),
        ("x^2", "E124", 2),
        ("~x", "E124", 1),
        ("a @ b", "E124", 3),
        ("a << 2", "E124", 3),
        ("(a := 2)", "E124", 4),
        ("a && b", "E124", 3),
        ("a || b", "E124", 3),
        ("!a", "E124", 1),
        ("v[1:2]", "E124", 4),
        ("{a}", "E124", 1),
        ("a; b", "E124", 2),
        ("[..., n]", "E124", 2),
        ("f(*a)", "E127", 3),
        ("f(**a)", "E127", 3),
        ("f(b, *a)", "E127", 6),
        ("f(a=1, a=2)", "E127", 8),
        ("f(x)(y)", "E127", 1),
        ("f.g(x)", "E127", 1),
        ("3(x)", "E127", 1),
        ("none(x)", "E127", 1),
        ("a, b", "E126", 1),
        ("lambda", "E126", 1),
        ("x for x", "E126", 3),
        ("a is b", "E126", 3),
        ("a not in b", "E126", 7),
        ("await x", "E126", 1),
        ("f(x).y", "E126", 1),
        ("f(x)[0]", "E126", 1),
        ("f(lambda=1)", "E126", 3),
        ("True", "E130", 1),
        ("None", "E130", 1),
        ("2x", "E123", 1),
        ("0x1F", "E123", 1),
        ("1_000", "E123", 1),
        ("012", "E123", 1),
        ("1j", "E123", 1),
        ("1e999", "E123", 1),
        ("1.2.3", "E123", 1),
        ("9" * 41, "E123", 1),
        ("((x)", "E122", 1),
        ("(x]", "E122", 3),
        ("x) + (y", "E122", 2),
        ("'a", "E122", 1),
        ("f(x", "E122", 2),
        ("", "E132", 1),
        ("  ", "E132", 1),
        ("a b", "E120", 3),
        ("a + ", "E120", 3),
        ("+ a", "E120", 1),
        ("a if b", "E120", 3),
        ("a = b", "E120", 3),
        ("f(a=1, b)", "E120", 4),
        ("()", "E120", 2),
        ("f(,)", "E120", 3),
        ("a + not b", "E120", 5),
        ("a not b", "E120", 3),
        ("x[]", "E120", 3),
        ("a..b", "E120", 3),
        ("'{{x}}'", "E131", 1),
        ("'a' 'b'", "E120", 5),
        ("'" + "a" * 81 + "'", "E131", 1),
        ("x\u2212y", "E121", 2),
        ("x\u00a0+ y", "E121", 2),
        ("\u03b1", "E121", 1),
        ("\ufb01", "E121", 1),
        ("a\\b", "E121", 2),
        ("x#y", "E111", 2),
        ("a" * 81, "E128", 1),
        ("x" + "+x" * 101, "E128", 1),
        ("(" * 101 + "x" + ")" * 101, "E128", 101),
        ("-" * 101 + "x", "E128", 1),
        ("not " * 101 + "x", "E128", 1),
        ("x" + " | f" * 101, "E128", 1),
        ("x" * 4001, "E128", 1),
        ("x if c else " * 101 + "x", "E128", 1),
        ("2" + "**2" * 101, "E128", 1),
        ("[" + "1," * 1001 + "]", "E128", 2001),
        ("f(" * 101 + ")" * 101, "E128", 202),
    ],
)
def test_mistakes(text: str, code: str, column: int) -> None:
    assert _codes(text)[0] == (code, column)
    assert len(_codes(text)) == 1 or code in ("E123", "E124", "E121")


def test_places_in_continued_equations() -> None:
    _, value = _entry("q: linear(x,\n     [n_heads,\n\n  head_dim]) + y   # all of it\nz: 1\n")
    report = Reporter()
    tree = parse_equation(value, report)
    assert tree is not None and not report.diagnostics
    places = {
        part.id: (part.span.line, part.span.column) for part in tree.walk() if isinstance(part, ex.Name)
    }
    assert places == {"x": (1, 11), "n_heads": (2, 7), "head_dim": (4, 3), "y": (4, 16)}


def test_quotes_only_where_they_are_needed() -> None:
    report = Reporter()
    _, quoted = _entry('default: "max(32, d)"\n')
    assert parse_equation(quoted, report) is None and report.diagnostics[0].code == "E129"
    found = parse_equation(quoted, Reporter(), quoted_ok=True)
    assert isinstance(found, ex.Call) and found.args[1].span.column == 19
    for text in (
        "default: 'it''s'\n",
        'default: "a\\x20b"\n',
        "default: |\n  x\n",
        "default: [a, b]\n",
        "default: {a: 1}\n",
    ):
        again = Reporter()
        assert parse_equation(_entry(text)[1], again, quoted_ok=True) is None
        assert [found.code for found in again.diagnostics] == ["E129"], text


def test_axes_of_inputs() -> None:
    for text in ('u: "[..., n]"\n', "u: [..., n]\n"):
        report = Reporter()
        axes = parse_axes(_entry(text)[1], report)
        assert axes is not None and [axis.id for axis in axes.items if isinstance(axis, ex.Name)] == [
            "...",
            "n",
        ], text
    one = parse_axes(_entry("u: n\n")[1], Reporter())
    assert one is not None and len(one.items) == 1


def test_targets() -> None:
    report = Reporter()
    key, _ = _entry("  v ,k,  q: split(u)\n")
    assert [(target.name, target.span.column) for target in parse_targets(key, report)] == [
        ("v", 3),
        ("k", 6),
        ("q", 10),
    ]
    assert not report.diagnostics
    for text, code in (
        ("v, v: u\n", "E145"),
        ("v,: u\n", "E140"),
        ("'v': u\n", "E140"),
        ("v k: u\n", "E140"),
        ("v, half: u\n", "E143"),
        ("x: u\n", "E142"),
    ):
        again = Reporter()
        assert parse_targets(_entry(text)[0], again) == ()
        assert [found.code for found in again.diagnostics] == [code], text


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("lambda", "E141"),
        ("None", "E141"),
        ("async", "E141"),
        ("half", "E143"),
        ("state_dict", "E143"),
        ("i", "E142"),
        ("none", "E142"),
        ("x", "E142"),
        ("torch", "E144"),
        ("sum", "E144"),
        ("self", "E144"),
        ("l", "E144"),
        ("__init__", "E140"),
        ("_a", "E140"),
        ("2nd", "E140"),
        ("a-b", "E140"),
        ("", "E140"),
        ("\ufb01", "E140"),
        ("a" * 61, "E140"),
        ("a\n", "E140"),
    ],
)
def test_names_that_are_refused(name: str, code: str) -> None:
    report = Reporter()
    assert not check_name(name, START, report)
    assert [found.code for found in report.diagnostics] == [code]


@pytest.mark.parametrize("name", ["q", "A", "on", "match", "type_", "shared", "os", "v0", "gate", "memory"])
def test_names_that_are_fine(name: str) -> None:
    report = Reporter()
    assert (
        check_name(name, START, report) and check_weight_name(name, START, report) and not report.diagnostics
    )


def test_an_input_may_be_called_x() -> None:
    assert check_name("x", START, Reporter(), allow=frozenset({"x"}))
    assert check_weight_name("x", START, Reporter())


def test_tables_of_names_are_those_of_torch_and_python() -> None:
    pytest.importorskip("torch")
    script = "import torch; print(*(n for n in dir(torch.nn.Module()) if not n.startswith('_')))"
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (
        set(listed.stdout.split()) <= MODULE_ATTRIBUTES
    )  # asked elsewhere: libraries here may have added some
    import builtins

    words = {name for name in dir(builtins) if name[0].islower()}
    assert words <= TAKEN | MODULE_ATTRIBUTES | RESERVED.keys()


@given(
    st.one_of(
        st.text(max_size=120),
        st.lists(
            st.sampled_from(
                [
                    "x",
                    " ",
                    "f(",
                    ")",
                    "[",
                    "]",
                    ",",
                    "=",
                    "==",
                    "|",
                    "-",
                    "**",
                    "not ",
                    " if ",
                    " else ",
                    "and ",
                    "1",
                    "1e5",
                    ".",
                    "'a'",
                    "<",
                    "\n",
                    "#",
                    "&",
                    "lambda ",
                    ":",
                    "...",
                    "true",
                    "é",
                    "\\",
                    '"',
                ]
            )
        ).map("".join),
    )
)
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    report = Reporter()
    found = parse_expression_text(text, START, report)
    assert (found is None) == bool(report.diagnostics)
    if found is not None:
        assert _tree(write(found)) == without_places(found)
