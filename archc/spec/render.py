"""Shows diagnostics: the place, source lines with carets, the cause and the way out; or as JSON."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from archc.spec.diagnostics import Diagnostic, Span

TAB = 4
WIDEST = 120  # characters of a source line that are shown

_CODES = {"error": "1;31", "place": "34", "caret": "1;31", "label": "34", "word": "1", "help": "1;32"}


def render(diagnostics: Iterable[Diagnostic], sources: Mapping[str, str], *, colour: bool = False) -> str:
    """All diagnostics as text, one after the other with an empty line between; ends with a newline.

    `sources` maps paths to their text; places in other files are shown without an excerpt. `colour` adds ANSI
    codes.
    """
    found = list(diagnostics)
    spans = [span for each in found for span in (each.span, *(label.span for label in each.labels))]
    paths = {span.path for span in spans} & sources.keys()
    lines = {path: sources[path].removeprefix("\ufeff").split("\n") for path in paths}
    shown = [_one(diagnostic, lines, _Paint(colour)) for diagnostic in found]
    return "\n".join(shown)


def to_json(diagnostics: Iterable[Diagnostic]) -> str:
    """All diagnostics as a JSON list. Lines and columns count from 1, ends are exclusive."""
    found = [
        {
            "code": each.code,
            "message": each.message,
            **_place(each.span),
            "note": each.note,
            "help": each.help,
            "labels": [{"text": label.text, **_place(label.span)} for label in each.labels],
        }
        for each in diagnostics
    ]
    return json.dumps(found, indent=2) + "\n"


def _place(span: Span) -> dict[str, object]:
    return {
        "path": span.path,
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
    }


@dataclass(frozen=True, slots=True)
class _Paint:
    colour: bool

    def __call__(self, kind: str, text: str) -> str:
        return f"\x1b[{_CODES[kind]}m{text}\x1b[0m" if self.colour and text else text


@dataclass(frozen=True, slots=True)
class _Mark:
    """Something to underline: on one line of one file, with a sign and a few words."""

    line: int
    column: int
    end: int | None  # None: to the end of the line
    sign: str
    text: str


def _one(diagnostic: Diagnostic, sources: Mapping[str, list[str]], paint: _Paint) -> str:
    out = [f"{paint('error', f'error[{diagnostic.code}]')}: {paint('word', clean(diagnostic.message))}"]
    main = diagnostic.span
    marks: dict[str, list[_Mark]] = {main.path: [_mark(main, "^", "")]}
    for label in diagnostic.labels:
        marks.setdefault(label.span.path, []).append(_mark(label.span, "-", clean(label.text)))
    widest = max((mark.line for group in marks.values() for mark in group), default=1)
    gutter = len(str(max(widest, 1)))
    for path, group in marks.items():
        head = (
            main
            if path == main.path
            else next(label.span for label in diagnostic.labels if label.span.path == path)
        )
        if head.line:
            arrow = "-->" if path == main.path else ":::"
            words = "" if path in sources else ", ".join(mark.text for mark in group if mark.text)
            out.append(
                f"{' ' * gutter}{paint('place', arrow)} {clean(str(head))}{': ' if words else ''}{words}"
            )
        elif path:
            out.append(f"{' ' * gutter}{paint('place', '-->')} {clean(path)}")
        if path in sources and head.line:
            out += _excerpt(sources[path], group, gutter, paint)
    for kind, text in (("note", diagnostic.note), ("help", diagnostic.help)):
        if text:
            word = paint("help" if kind == "help" else "word", kind)
            first, *rest = clean(text, keep="\n").split("\n")
            out.append(f"{' ' * gutter} {paint('place', '=')} {word}: {first}")
            out += [f"{' ' * (gutter + 9)}{line}" for line in rest]
    return "\n".join(out) + "\n"


def _mark(span: Span, sign: str, text: str) -> _Mark:
    """The first line of a span; a longer span is underlined to the end of that line."""
    return _Mark(span.line, span.column, span.end_column if span.end_line == span.line else None, sign, text)


def _excerpt(lines: list[str], marks: list[_Mark], gutter: int, paint: _Paint) -> list[str]:
    bar = paint("place", "|")
    out = [f"{' ' * gutter} {bar}"]
    previous = 0
    for number in sorted({mark.line for mark in marks}):
        if not 1 <= number <= len(lines):
            continue
        if previous and number > previous + 1:
            out.append(paint("place", "..."))
        previous = number
        here = sorted(
            (mark for mark in marks if mark.line == number), key=lambda mark: (mark.column, mark.sign)
        )
        text = lines[number - 1].rstrip("\r")
        window = _window(text, here)
        shown = "".join(_cell(character) for character in text[window])
        before, after = "... " if window.start else "", " ..." if window.stop < len(text) else ""
        out.append(f"{paint('place', str(number).rjust(gutter))} {bar} {before}{shown}{after}".rstrip())
        for mark in here:
            out.append(f"{' ' * gutter} {bar} {' ' * len(before)}{_underline(text, mark, window, paint)}")
    return out


def _window(text: str, marks: list[_Mark]) -> slice:
    """The part of a line that is shown: all of it, or what surrounds the first mark."""
    if len(text) <= WIDEST:
        return slice(0, len(text))
    start = max(0, min(marks[0].column - 1 - WIDEST // 3, len(text) - WIDEST))
    return slice(start, min(len(text), start + WIDEST))


def _underline(text: str, mark: _Mark, window: slice, paint: _Paint) -> str:
    start = min(max(mark.column - 1, window.start), window.stop)
    stop = len(text.rstrip()) if mark.end is None else mark.end - 1
    stop = min(max(stop, start), window.stop)
    width = max(1, sum(_width(_cell(character)) for character in text[start:stop]))
    indent = sum(_width(_cell(character)) for character in text[window.start : start])
    sign = paint("caret" if mark.sign == "^" else "label", mark.sign * width)
    words = f" {paint('label', mark.text)}" if mark.text else ""
    return f"{' ' * indent}{sign}{words}"


def _cell(character: str) -> str:
    """How one character of a source line is shown."""
    if character == "\t":
        return " " * TAB
    return character if _is_shown(character) else "\N{REPLACEMENT CHARACTER}"


def _is_shown(character: str) -> bool:
    if " " <= character < "\x7f":
        return True
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp", "Zs")


def _width(text: str) -> int:
    """Columns of a terminal that a text takes: two for wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def clean(text: str, keep: str = "") -> str:
    """Text without anything that could steer a terminal: other characters are shown as their code."""
    return "".join(c if _is_shown(c) or c in keep else f"<U+{ord(c):04X}>" for c in text)
