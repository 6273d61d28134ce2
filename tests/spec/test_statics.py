"""Static arithmetic: exact, bounded, the same on every machine, and the same as its Python source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import pytest
from hypothesis import given

from archc.spec import exact
from archc.spec import expressions as ex
from archc.spec.diagnostics import Reporter, Span
from archc.spec.parser import parse_expression_text
from archc.spec.spec import Static
from archc.spec.statics import evaluate, free_names, python_names, to_python
from tests.spec import trees

NAMES: dict[str, Static] = {
    "d": Fraction(1024),
    "h": Fraction(6),
    "e": Fraction(8, 3),
    "w": None,
    "on": True,
    "word": "after",
    "list_": (Fraction(1), Fraction(2)),
    "rope": {"theta": Fraction(10_000)},
    "top": math.inf,
    "a": Fraction(3),
    "b": Fraction(-2),
    "n_heads": Fraction(4),
    "head_dim": Fraction(64),
}
PYTHON = {
    name: int(value) if isinstance(value, Fraction) and value.denominator == 1 else value
    for name, value in NAMES.items()
}
LIBRARY = {
    "Fraction": Fraction,
    "math": math,
    "power": exact.power,
    "square_root": exact.square_root,
    "exponential": exact.exponential,
    "logarithm": exact.logarithm,
    "round_up": exact.round_up,
    "round_down": exact.round_down,
}


def _tree(text: str) -> ex.Expr:
    report = Reporter()
    found = parse_expression_text(text, Span("s", 1, 1, 1, 1), report)
    assert found is not None, report.diagnostics
    return found


def _value(text: str) -> Static:
    report = Reporter()
    found = evaluate(_tree(text), NAMES, report)
    assert not report.diagnostics, report.diagnostics
    return found


def _source(name: str) -> str:
    first, *rest = name.split(".")
    return first + "".join(f'["{entry}"]' for entry in rest)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8 / 3 * d", Fraction(8192, 3)),
        ("round_up(e * d, 64)", Fraction(2752)),
        ("round_down(100, 64)", Fraction(64)),
        ("0.1 + 0.2 == 0.3", True),
        ("d ** -0.5", Fraction(1, 32)),
        ("8 ** (2 / 3)", Fraction(4)),
        ("2 ** -3", Fraction(1, 8)),
        ("sqrt(1 / 9)", Fraction(1, 3)),
        ("sqrt(2)", Fraction(math.sqrt(2))),
        ("exp(0)", Fraction(1)),
        ("log(1)", Fraction(0)),
        ("exp(1)", Fraction(math.e)),
        ("round(5 / 2)", Fraction(2)),
        ("round(7 / 2)", Fraction(4)),
        ("round(-5 / 2)", Fraction(-2)),
        ("ceil(d / 3)", Fraction(342)),
        ("floor(-1 / 2)", Fraction(-1)),
        ("7 // -2", Fraction(-4)),
        ("7 % -2", Fraction(-1)),
        ("-2 ** 2", Fraction(-4)),
        ("(-1) ** 99999999999999999999", Fraction(-1)),
        ("0 ** 0", Fraction(1)),
        ("max(32, 32 * round(2.5 * sqrt(d) * 64 / 64 / 32))", Fraction(64)),
        ("min(top, 3)", Fraction(3)),
        ("top > 5", True),
        ("-top < 0", True),
        ("w == none", True),
        ("d != none", True),
        ('word == "after"', True),
        ("1 if w else 2", Fraction(2)),
        ("1 if rope else 2", Fraction(1)),
        ("not w and d > 3", True),
        ("w and d / 0 > 1", False),
        ("on or d / 0 > 1", True),
        ("1 if on else d / 0", Fraction(1)),
        ("1 < h <= 6 < d", True),
        ("list_[1]", Fraction(2)),
        ("rope.theta", Fraction(10_000)),
        ("[d, 2]", (Fraction(1024), Fraction(2))),
        ("2 > 3 > d / 0", False),
        ("exp(-1000)", Fraction(0)),
        ("on == true", True),
        ("(w or h) == true", True),
    ],
)
def test_values(text: str, value: Static) -> None:
    found = _value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "code", "column"),
    [
        ("heads", "E160", 1),
        ("rope + 1", "E161", 1),
        ("on + 1", "E161", 1),
        ("word if word else 1", "E161", 9),
        ("word == 3", "E161", 9),
        ("on == 1", "E161", 7),
        ("word < 3", "E161", 1),
        ("d.theta", "E161", 1),
        ("d[0]", "E161", 1),
        ("d / (h - 6)", "E162", 6),
        ("d // 0", "E162", 6),
        ("d % 0", "E162", 5),
        ("0 ** -1", "E162", 1),
        ("0 ** -0.5", "E162", 1),
        ("10 ** 10 ** 10", "E163", 1),
        ("2 ** 4096", "E163", 1),
        ("(10 ** 399) ** 10", "E163", 1),
        ("exp(10000)", "E163", 1),
        ("ceill(3)", "E164", 1),
        ("ceil(1, 2)", "E164", 1),
        ("max(1)", "E164", 1),
        ("ceil(x=3)", "E164", 1),
        ("sqrt(-1)", "E165", 6),
        ("log(0)", "E165", 5),
        ("(-2) ** 0.5", "E165", 2),
        ("top - top", "E165", 1),
        ("round_up(3, 0)", "E165", 13),
        ("list_[2]", "E166", 7),
        ("list_[-1]", "E166", 7),
        ("list_[0.5]", "E166", 7),
        ("rope.thete", "E166", 1),
        ("rope.thete.x + d / 0", "E166", 1),
        ("1.5 ** 99999", "E163", 1),
        ("2 ** 0.5 ** 99", "E163", 1),
        ("(10 ** 300 + 1) ** 1.5", "E163", 1),
        ("(4 ** 2000) ** (4095 / 2)", "E163", 1),
    ],
)
def test_mistakes(text: str, code: str, column: int) -> None:
    report = Reporter()
    if text == "2 ** 0.5 ** 99":  # tiny exponents are fine
        assert evaluate(_tree(text), NAMES, report) is not None
        return
    assert evaluate(_tree(text), NAMES, report) is None
    assert [(found.code, found.span.column) for found in report.diagnostics] == [(code, column)]


def test_unknown_names_come_with_a_suggestion_and_lookups_may_be_functions() -> None:
    report = Reporter()
    evaluate(_tree("head_dims"), NAMES, report)
    assert report.diagnostics[0].help == "did you mean `head_dim`?"
    assert evaluate(_tree("d * 2"), NAMES.__getitem__, Reporter()) == 2048
    evaluate(_tree("nothing"), NAMES.__getitem__, report)
    assert [found.code for found in report.diagnostics] == ["E160", "E160"] or len(report.diagnostics) == 1


def test_free_names() -> None:
    assert free_names(_tree("max(a, rope.theta) if b == none else list_[0] + true")) == {
        "a",
        "rope",
        "b",
        "list_",
    }


@given(trees.statics())
def test_python_source_computes_the_same(tree: ex.Expr) -> None:
    report = Reporter()
    value = evaluate(tree, NAMES, report)
    source = to_python(tree, _source)
    if report.diagnostics:
        return
    needed = python_names(tree)
    scope = {**PYTHON, **{name: LIBRARY[name] for name in needed}}
    found = eval(
        source, {"__builtins__": {"round": round, "min": min, "max": max, "abs": abs, "bool": bool}}, scope
    )
    assert found == value, source
    assert isinstance(found, bool) == isinstance(value, bool), source
    assert (found is None) == (value is None), source
    assert not isinstance(found, float)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("d - (h - 1)", "d - (h - 1)"),
        ("(d - h) - 1", "d - h - 1"),
        ("d * (h + 1)", "d * (h + 1)"),
        ("-(d * h)", "-(d * h)"),
        ("(-d) ** 2", "(-d) ** 2"),
        ("-d ** 2", "-d ** 2"),
        ("d / h", "Fraction(d, h)"),
        ("0.5 * d", "Fraction(1, 2) * d"),
        ("ceil(8 / 3 * d / 64) * 64", "math.ceil(Fraction(Fraction(8, 3) * d, 64)) * 64"),
        ("d ** 2", "d ** 2"),
        ("w == none", "w is None"),
        ("1 if w and h else 2", "1 if w and h else 2"),
        ("w or h", "bool(w or h)"),
        ("not (w or h)", "not (w or h)"),
        ("rope.theta * 2", 'rope["theta"] * 2'),
        ("[d]", "(d,)"),
        ("sqrt(d)", "square_root(d)"),
        ("d ** -1", "power(d, -1)"),
        ("(1 if on else 2) * d", "(1 if on else 2) * d"),
        ("true", "True"),
    ],
)
def test_python_source_reads_well(text: str, source: str) -> None:
    assert to_python(_tree(text), _source) == source


@pytest.mark.parametrize(
    "x", [Fraction(1, 7), Fraction(3), Fraction(700), Fraction(-700), Fraction(10**40 + 1, 10**39)]
)
def test_irrational_results_are_the_nearest_doubles(x: Fraction) -> None:
    """The neighbours of the result lie on the two sides of the true value, seen with 200 digits."""
    from decimal import Context, Decimal

    precise = Context(prec=200)
    exact_x = precise.divide(Decimal(x.numerator), Decimal(x.denominator))
    cases: list[tuple[Fraction, Decimal]] = [(exact.exponential(x), precise.exp(exact_x))]
    if x > 0:
        cases += [
            (exact.logarithm(x), precise.ln(exact_x)),
            (exact.square_root(x), precise.sqrt(exact_x)),
            (exact.power(x, Fraction(1, 3)), precise.power(exact_x, precise.divide(Decimal(1), Decimal(3)))),
        ]
    for found, true in cases:
        error = abs(found - Fraction(true))
        assert error <= Fraction(math.ulp(float(found))) / 2


def test_a_mapping_of_statics_is_typed() -> None:
    values: Mapping[str, Static] = NAMES
    assert evaluate(_tree("a + b"), values, Reporter()) == 1
