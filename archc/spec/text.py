"""Spec files as text: bounded in size, valid UTF-8, without characters that hide what a reader sees."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

from archc.spec.diagnostics import Reporter, Span
from archc.spec.lexer import describe

MAX_BYTES = 1_000_000

# Characters that reorder or hide text, so that a file would read differently from what it says.
_HIDING = frozenset(range(0x202A, 0x202F)) | frozenset(range(0x2066, 0x206A)) | {0x200B, 0x2060, 0xFEFF}


class Lines:
    """Turns character offsets of one text into lines and columns from 1."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        lengths = (len(line) + 1 for line in text.split("\n")[:-1])
        self._starts = list(accumulate(lengths, initial=0))

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a character offset."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def span(self, start: int, end: int) -> Span:
        """The span from one offset to another, end exclusive."""
        return Span(self.path, *self.position(start), *self.position(max(start, end)))

    def line(self, number: int) -> str:
        """The text of a line, without its end; empty after the last."""
        if number > len(self._starts):
            return ""
        return self.text[self._starts[number - 1] : self.end(number)].rstrip("\r")

    def start(self, number: int) -> int:
        """The offset of a line's first character."""
        return self._starts[number - 1]

    def end(self, number: int) -> int:
        """The offset just after a line's last character."""
        return self._starts[number] - 1 if number < len(self._starts) else len(self.text)


def read(path: Path, shown: str, report: Reporter) -> str | None:
    """The text of a file, at most `MAX_BYTES` of it, or None after an error. `shown` is how errors name the
    file.

    Raises OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return decode(data, shown, report)


def decode(data: bytes, path: str, report: Reporter) -> str | None:
    """Bytes as text, or None after an error that names the first byte that is not UTF-8."""
    if len(data) > MAX_BYTES:
        _too_large(path, report)
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        report.error(
            "E100",
            f"the byte 0x{data[error.start]:02x} is not UTF-8",
            Span(path, line, column, line, column),
            help="save the file as UTF-8",
        )
        return None


def check_characters(text: str, path: str, report: Reporter) -> bool:
    """Whether the text is small enough and has only characters that a reader can see; else reports."""
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        _too_large(path, report)
        return False
    known = len(report.diagnostics)
    lines: Lines | None = None
    for character in sorted(set(text)):
        if _is_plain(character):
            continue
        offset = text.find(character)
        if character == "\r":
            offset = next((i for i, c in enumerate(text) if c == "\r" and text[i + 1 : i + 2] != "\n"), -1)
        if offset < 0:
            continue
        lines = lines or Lines(text, path)
        if character == "\t":
            report.error(
                "E102",
                "a tab",
                lines.span(offset, offset + 1),
                note="YAML gives tabs no width, so an indentation with tabs has no meaning",
                help="use spaces",
            )
        else:
            report.error(
                "E100",
                f"the character {describe(character)} does not belong in a spec",
                lines.span(offset, offset + 1),
                help="remove it",
            )
    return len(report.diagnostics) == known


def _is_plain(character: str) -> bool:
    if character == "\n":
        return True
    if character < "\x80":
        return " " <= character < "\x7f"
    return (
        unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp", "Cn")
        and ord(character) not in _HIDING
    )


def _too_large(path: str, report: Reporter) -> None:
    report.error(
        "E101",
        f"the file is larger than {MAX_BYTES:,} bytes",
        Span(path, 1, 1, 1, 1),
        help="a spec is a page or two: move bodies that several models use into files of a library",
    )
