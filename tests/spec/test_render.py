"""How diagnostics look: excerpts, carets in the right columns, labels, colour, JSON."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from archc.spec.diagnostics import Diagnostic, Label, Reporter, Span, SpecError
from archc.spec.render import render, to_json


def _at(line: int, column: int, end: int, path: str = "s.yaml") -> Span:
    return Span(path, line, column, line, end)


def test_the_whole_of_it() -> None:
    source = "a: 1\nparams: {n_heads: 4}\n" + "\n" * 7 + "y: linear(x, [n_head])\n"
    found = Diagnostic(
        "E999",
        "`n_head` is not known",
        _at(10, 15, 21),
        note="names are declared",
        help="use `n_heads`",
        labels=(Label(_at(2, 10, 17), "declared here"), Label(_at(3, 1, 2, "other.yaml"), "and here")),
    )
    assert (
        render([found], {"s.yaml": source})
        == """\
error[E999]: `n_head` is not known
  --> s.yaml:10:15
   |
 2 | params: {n_heads: 4}
   |          ------- declared here
...
10 | y: linear(x, [n_head])
   |               ^^^^^^
  ::: other.yaml:3:1: and here
   = note: names are declared
   = help: use `n_heads`
"""
    )


def test_wide_characters_and_tabs_keep_the_caret_in_its_column() -> None:
    text = render([Diagnostic("E999", "here", _at(1, 6, 8))], {"s.yaml": "漢e\u0301\tbxy\n"})
    line, caret = text.split("\n")[3:5]
    assert line == "1 | 漢e\u0301    bxy" and caret == "  | " + " " * (2 + 1 + 4 + 1) + "^^"


def test_long_lines_are_cut_around_the_mark() -> None:
    text = render([Diagnostic("E999", "here", _at(1, 501, 505))], {"s.yaml": "-" * 500 + "MARK" + "-" * 500})
    line, caret = text.split("\n")[3:5]
    assert len(line) < 140 and line.index("MARK") == caret.index("^") and caret.count("^") == 4


def test_spans_over_several_lines_and_empty_ones() -> None:
    text = render(
        [Diagnostic("E999", "here", Span("s.yaml", 1, 4, 2, 3)), Diagnostic("E998", "end", _at(3, 1, 1))],
        {"s.yaml": "y: a +\n  b\n"},
    )
    assert "1 | y: a +\n  |    ^^^\n" in text and "3 |\n  | ^\n" in text


def test_places_without_a_source() -> None:
    assert render([Diagnostic("E999", "here", _at(1, 1, 2))], {}) == "error[E999]: here\n --> s.yaml:1:1\n"
    assert render([Diagnostic("E999", "nowhere")], {}) == "error[E999]: nowhere\n"


@given(st.text(max_size=60), st.text(max_size=200), st.integers(0, 8), st.integers(0, 80), st.integers(0, 80))
def test_nothing_in_a_spec_steers_the_terminal(
    message: str, source: str, line: int, column: int, end: int
) -> None:
    found = Diagnostic(
        "E999",
        message,
        _at(line, column, end, message or "s"),
        note=message,
        help=message,
        labels=(Label(_at(line, end, column, message or "s"), message),),
    )
    text = render([found], {message or "s": source})
    assert all(character.isprintable() or character == "\n" for character in text)
    assert json.loads(to_json([found]))[0]["message"] == message


def test_colour_only_adds_codes() -> None:
    found = Diagnostic(
        "E999", "here", _at(1, 1, 2), note="a\nb", help="c", labels=(Label(_at(1, 3, 4), "there"),)
    )
    plain = render([found], {"s.yaml": "a b\n"})
    coloured = render([found], {"s.yaml": "a b\n"}, colour=True)
    import re

    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain != coloured


def test_json_has_places_and_labels() -> None:
    found = Diagnostic("E999", "here", _at(2, 3, 4), labels=(Label(_at(1, 1, 2), "there"),))
    (entry,) = json.loads(to_json([found]))
    assert (entry["code"], entry["line"], entry["column"], entry["end_column"]) == ("E999", 2, 3, 4)
    assert entry["labels"][0]["text"] == "there" and entry["labels"][0]["line"] == 1


def test_a_reporter_keeps_each_mistake_once_and_in_order() -> None:
    report = Reporter()
    report.error("E999", "second", _at(2, 1, 2))
    report.error("E999", "second again", _at(2, 1, 2))
    report.error("E998", "first", _at(1, 1, 2))
    try:
        report.raise_if_any()
    except SpecError as error:
        assert [found.message for found in error.diagnostics] == ["first", "second"]
    else:
        raise AssertionError("nothing was raised")
