"""YAML as nodes: places, the core schema of YAML 1.2, and the mistakes that equations make in YAML."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from archc.spec import yaml_reader
from archc.spec.diagnostics import Reporter, Span
from archc.spec.text import decode, read
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence, core_value
from archc.spec.yaml_reader import parse

REPOSITORY = Path(__file__).resolve().parents[2]
SPECS = sorted((REPOSITORY / "specs").rglob("*.yaml"))


def _parse(text: str) -> tuple[YNode | None, list[tuple[str, int, int]]]:
    report = Reporter()
    node = parse(text, "s.yaml", report)
    return node, [(found.code, found.span.line, found.span.column) for found in report.diagnostics]


def _value(text: str) -> YNode:
    node, found = _parse(f"a: {text}\n")
    assert isinstance(node, YMapping) and not found, found
    return node.entries[0][1]


def _scalars(node: YNode) -> list[YScalar]:
    if isinstance(node, YScalar):
        return [node]
    if isinstance(node, YSequence):
        return [scalar for item in node.items for scalar in _scalars(item)]
    return [scalar for key, value in node.entries for scalar in (key, *_scalars(value))]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("NULL", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("none", "none"),
        ("012", Fraction(12)),
        ("-7", Fraction(-7)),
        ("+3", Fraction(3)),
        ("0o17", Fraction(15)),
        ("0x1F", Fraction(31)),
        ("0.1", Fraction(1, 10)),
        ("1e-6", Fraction(1, 1_000_000)),
        (".5", Fraction(1, 2)),
        ("1.", Fraction(1)),
        ("-2.5E+3", Fraction(-2500)),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2001-12-14", "2001-12-14"),
        ("8/3", "8/3"),
        ("-", "-"),
        ("+", "+"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("0b11", "0b11"),
        (".", "."),
        ("e5", "e5"),
        ("1e", "1e"),
        ("-.5", Fraction(-1, 2)),
    ],
)
def test_core_schema(text: str, value: object) -> None:
    if text == "-":  # alone it would begin a list
        scalar = YScalar(Span("s", 1, 1, 1, 2), "-", "-", "plain")
    else:
        node = _value(text)
        assert isinstance(node, YScalar)
        scalar = node
    found = core_value(scalar)
    assert found == value and type(found) is type(value)


def test_words_of_yaml_1_1_stay_words_as_keys() -> None:
    node, found = _parse("on: 1\noff: 2\nyes: 3\nnull: 4\n~: 5\n")
    assert isinstance(node, YMapping) and not found
    assert [key.text for key, _ in node.entries] == ["on", "off", "yes", "null", "~"]


def test_every_scalar_of_the_library_stands_where_it_says() -> None:
    assert len(SPECS) > 10
    count = 0
    for path in SPECS:
        text = path.read_text(encoding="utf-8")
        node, found = _parse(text)
        assert node is not None and not found, (path, found)
        lines = text.split("\n")
        for scalar in _scalars(node):
            span = scalar.span
            if span.line == span.end_line:
                assert lines[span.line - 1][span.column - 1 : span.end_column - 1] == scalar.raw
            else:
                assert lines[span.line - 1][span.column - 1 :] == scalar.raw.split("\n")[0]
            count += 1
    assert count > 500


def test_places_after_wide_characters_and_windows_line_ends() -> None:
    node, found = _parse("\ufeffé😀: 1\r\nb: x + y   # note\r\n")
    assert isinstance(node, YMapping) and not found
    (_, _), (key, value) = node.entries
    assert (key.span.line, key.span.column) == (2, 1)
    assert isinstance(value, YScalar) and value.raw == "x + y" and value.comment is not None
    assert (value.span.column, value.span.end_column, value.comment.column) == (4, 9, 12)


def test_collections_end_with_their_last_value() -> None:
    node, _ = _parse("a:\n  b: [1,\n    2]\n\n\nc: 3\n")
    assert isinstance(node, YMapping)
    inner = node.entries[0][1]
    assert isinstance(inner, YMapping) and not inner.flow
    assert (inner.span.line, inner.span.end_line, inner.span.end_column) == (2, 3, 7)


# (text, code, line, column): the table of surprises that equations meet in YAML.
MISTAKES = [
    ("a: {default: max(32, 8)}\n", "E110", 1, 14),
    ("a: {q: f(x, [n])}\n", "E110", 1, 8),
    ("a: {v, k, q: split(x)}\n", "E110", 1, 5),
    ("a: [f(x, 3), 4]\n", "E110", 1, 5),
    ("a: {q: f([n])}\n", "E110", 1, 8),
    ("a: {b}\n", "E110", 1, 5),
    ("y: &x\n", "E104", 1, 4),
    ("y: *x\n", "E104", 1, 4),
    ("<<: 1\n", "E104", 1, 1),
    ("y: !x 1\n", "E105", 1, 4),
    ("y: ! 1\n", "E105", 1, 4),
    ("%YAML 1.2\n---\na: 1\n", "E105", 1, 1),
    ("a: 1\n---\nb: 2\n", "E106", 2, 1),
    ("", "E107", 1, 1),
    ("# only\n", "E107", 1, 1),
    ("? [a]\n: b\n", "E108", 1, 3),
    ("'': b\n", "E108", 1, 1),
    ("a: 1\nb: 2\na: 3\n", "E109", 3, 1),
    ("y: - exp(x)\n", "E114", 1, 4),
    ("y: [x, y] + z\n", "E114", 1, 4),
    ("y: *x + 1\n", "E104", 1, 4),
    ("y: %x\n", "E114", 1, 4),
    ("y: @x\n", "E114", 1, 4),
    ("y: `x`\n", "E114", 1, 4),
    ("y: | f\n", "E114", 1, 4),
    ("y: > 0\n", "E114", 1, 4),
    ('y: "a" + b\n', "E114", 1, 4),
    ("y: ? x\n", "E114", 1, 4),
    ("q: f(x, # c\n     y)\nz: 1\n", "E111", 1, 9),
    ("q: f(x,\n   # c\n   y)\nz: 1\n", "E111", 2, 4),
    ("b:\n  a: f(x,\n  [n])\n  c: 1\n", "E112", 3, 3),
    ("b:\n  a: f(x,\n  n)\n  c: 1\n", "E112", 3, 3),
    ("a: .nan\n", "E113", 1, 4),
    ("a: [.NaN]\n", "E113", 1, 5),
    ("a:\tb\n", "E102", 1, 3),
    ("a: b\x00\n", "E100", 1, 5),
    ("a: \u202e\n", "E100", 1, 4),
    ("a: \udc80\n", "E100", 1, 4),
    ("a: b\rc: d\n", "E100", 1, 5),
    ("a: b\u2028c\n", "E100", 1, 5),
    ("a: 'x\n", "E103", 1, 4),
    ("a: {b: c\n", "E103", 2, 1),
    ("a: b: c\n", "E103", 1, 5),
    ("a: (b: c", "E103", 1, 6),
    ("a: x\n b: 1\n", "E103", 2, 3),
    ("- a\nb: 1\n", "E103", 2, 1),
    ("a:\n  b: 1\n c: 2\n", "E103", 3, 2),
    ("a: 1\nx\nb: 2\n", "E103", 2, 1),
    ('a: "\\q"\n', "E103", 1, 5),
    (f"a: {'9' * 41}\n", "E123", 1, 4),
    ("a: 1e401\n", "E123", 1, 4),
    ("[" * 65 + "]" * 65, "E101", 1, 65),
    ("- a\n" * 10_000, "E101", 10_000, 3),
    ("a: " + "b" * 1_000_000, "E101", 1, 1),
]


@pytest.mark.parametrize("parser", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize(("text", "code", "line", "column"), MISTAKES, ids=lambda value: repr(value)[:30])
def test_mistakes(
    text: str, code: str, line: int, column: int, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answer from libyaml and from PyYAML's own parser."""
    monkeypatch.setattr(yaml_reader.yaml, "CSafeLoader", getattr(yaml, parser))
    node, found = _parse(text)
    assert found[0] == (code, line, column)
    assert len(found) == 1 or code == "E104"
    assert node is None or code == "E109"


def test_all_mistakes_of_yaml_come_at_once() -> None:
    _, found = _parse("a: &x 1\nb: {c: max(1, 2)}\nd: .nan\nd: 2\n")
    assert [code for code, _, _ in found] == ["E104", "E110", "E113", "E109"]


def test_the_first_of_two_equal_keys_is_kept_and_shown() -> None:
    report = Reporter()
    node = parse("a: 1\n'a': 2\n", "s", report)
    assert isinstance(node, YMapping) and isinstance(node.get("a"), YScalar)
    assert node.get("a").text == "1"  # type: ignore[union-attr]
    (label,) = report.diagnostics[0].labels
    assert label.span == Span("s", 1, 1, 1, 2)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    report = Reporter()
    assert decode("a: é\nb: ".encode() + b"\xff\n", "s", report) is None
    assert (report.diagnostics[0].code, report.diagnostics[0].span) == ("E100", Span("s", 2, 4, 2, 4))
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * 1_000_001)
    assert read(path, "large.yaml", report) is None
    assert report.diagnostics[1].code == "E101"


PIECES = st.sampled_from(
    list("ab:,-?#&*!|>'\"%@`{}[]() \n\t\\0.~<=") + ["\n  ", ": ", " #", "- ", "---", "...", "<<", "é"]
)


@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=60).map("".join)))
def test_arbitrary_text_is_read_or_refused(text: str) -> None:
    report = Reporter()
    node = parse(text, "s", report)
    assert node is not None or report.diagnostics
    last = text.removeprefix("\ufeff").count("\n") + 1
    assert all(1 <= found.span.line <= last + 1 for found in report.diagnostics)


@given(st.lists(PIECES, max_size=40).map("".join))
def test_both_parsers_of_yaml_agree(text: str) -> None:
    answers = []
    original = yaml.CSafeLoader
    for parser in (original, yaml.SafeLoader):
        yaml_reader.yaml.CSafeLoader = parser
        try:
            answers.append(_parse(text)[0])
        finally:
            yaml_reader.yaml.CSafeLoader = original
    if answers[0] is not None and answers[1] is not None:
        assert answers[0] == answers[1]
