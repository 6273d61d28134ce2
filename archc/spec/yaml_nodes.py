"""YAML text as nodes with places: scalars keep their text, nothing is converted, keys stay in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from archc.spec.diagnostics import Span
from archc.spec.lexer import exact_number


@dataclass(frozen=True, slots=True)
class YScalar:
    """One scalar. `text` is its value after folding and unescaping; `raw` is the slice of the file."""

    span: Span
    text: str
    raw: str
    style: str  # "plain", "quoted" or "block"
    flow: bool = False  # inside {...} or [...]
    comment: Span | None = None  # the `# ...` that follows on the same line


@dataclass(frozen=True, slots=True)
class YSequence:
    """A list, in block or flow style."""

    span: Span
    items: tuple[YNode, ...]
    flow: bool


@dataclass(frozen=True, slots=True)
class YMapping:
    """A mapping: pairs in the order of the file, keys unique by text."""

    span: Span
    entries: tuple[tuple[YScalar, YNode], ...]
    flow: bool

    def get(self, name: str) -> YNode | None:
        """The value under `name`, or None."""
        return next((value for key, value in self.entries if key.text == name), None)


YNode = YScalar | YSequence | YMapping

_INFINITY = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_SPECIAL_INTEGER = re.compile(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}", re.ASCII)
_WORDS: dict[str, bool | None] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


def core_value(scalar: YScalar) -> Fraction | float | bool | str | None:
    """What a scalar means in the core schema of YAML 1.2.

    Quoted and block scalars are words. `null`, `~` and nothing are None; `true` and `false` are booleans;
    integers, also `0o17` and `0x1F`, and decimals are exact (`012` is twelve, `0.1` is one tenth); `.inf` is
    a float. Anything else, such as `on`, `yes`, `none` or `8/3`, is a word.
    """
    text = scalar.text
    if scalar.style != "plain":
        return text
    if text in _WORDS:
        return _WORDS[text]
    if infinity := _INFINITY.fullmatch(text):
        return float(infinity.group(1) + "inf")
    if _SPECIAL_INTEGER.fullmatch(text):
        return Fraction(int(text, 0))
    sign = -1 if text[0] == "-" else 1
    digits = text[1:] if text[0] in "+-" else text
    if digits.isascii() and digits.isdigit():
        digits = digits.lstrip("0") or "0"
    value = exact_number(digits)
    return text if isinstance(value, str) else sign * value
