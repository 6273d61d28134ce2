"""The tokens of an equation, and the mistakes that can be seen in them before any tree is built."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 40
MAX_EXPONENT = 400
MAX_LENGTH = 4_000

_TOKEN = re.compile(
    r"""(?P<space>[ \r\n]+)
      | (?P<number>(?:\d|\.\d)(?:[eE][+-]\d|[A-Za-z0-9_.])*)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<string>"[^"\r\n]*"|'[^'\r\n]*')
      | (?P<operator>\.\.\.|\*\*|//|==|!=|<=|>=|&&|\|\||:=|<<|>>|->|<>|[-+*/%<>=|&^~@!?:;,.()\[\]{}])
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+|0\d*\.\d*)(?:[eE][+-]?\d+)?", re.ASCII)
_CLOSERS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True, slots=True)
class Token:
    """One token: `start` and `end` count characters of the equation's text from 0."""

    kind: str  # "number", "name", "string", "operator" or "other"
    text: str
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Split an equation into tokens without white space; unknown characters are of kind "other"."""
    found = ((match.lastgroup or "other", match) for match in _TOKEN.finditer(text))
    return [
        Token(kind, match.group(), match.start(), match.end()) for kind, match in found if kind != "space"
    ]


def unmatched_bracket(tokens: list[Token]) -> Token | None:
    """The first bracket that has no partner: a closing one, or the last opening one that stays open."""
    opened: list[Token] = []
    for token in tokens:
        if token.kind != "operator":
            continue
        if token.text in "([{":
            opened.append(token)
        elif token.text in _CLOSERS:
            if not opened or opened[-1].text != _CLOSERS[token.text]:
                return token
            opened.pop()
    return opened[-1] if opened else None


def has_unmatched_bracket(text: str) -> bool:
    """Whether the brackets of a piece of text fail to pair up; text in quotes does not count.

    Text that is too long for an equation is not looked at.
    """
    if len(text) > MAX_LENGTH:
        return False
    return any(bracket in text for bracket in "()[]{}") and unmatched_bracket(tokenize(text)) is not None


def deepest_bracket(tokens: list[Token], limit: int) -> Token | None:
    """The first bracket that is nested deeper than `limit`, or None."""
    depth = 0
    for token in tokens:
        if token.kind == "operator" and token.text in "([{":
            depth += 1
            if depth > limit:
                return token
        elif token.kind == "operator" and token.text in _CLOSERS:
            depth -= 1
    return None


def exact_number(text: str) -> Fraction | str:
    """The exact value of a decimal literal, or the reason why it has none."""
    if not _NUMBER.fullmatch(text):
        return _why_no_number(text)
    mantissa, _, exponent = text.lower().partition("e")
    if sum(character.isdigit() for character in mantissa) > MAX_DIGITS:
        return f"a number has at most {MAX_DIGITS} digits"
    if len(exponent) > 6 or abs(int(exponent or 0)) > MAX_EXPONENT:
        return f"the exponent of a number lies between -{MAX_EXPONENT} and {MAX_EXPONENT}"
    return Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)


def _why_no_number(text: str) -> str:
    lowered = text.lower()
    if lowered.startswith(("0x", "0o", "0b")):
        return "numbers are decimal"
    if "_" in text:
        return "digits are not grouped with `_`"
    if re.fullmatch(r"0\d+", text):
        return "a whole number does not begin with a zero"
    if lowered.endswith("j"):
        return "numbers are real"
    if re.fullmatch(r"\d+[A-Za-z]\w*", text):
        return "a name begins with a letter, and a product is written with `*`"
    return "this is not a decimal number"


def describe(character: str) -> str:
    """How an error names a character: printable ones as they are, with their Unicode name."""
    name = unicodedata.name(character, "")
    code = f"U+{ord(character):04X}"
    if character.isascii() and character.isprintable():
        return f"`{character}`"
    shown = f"`{character}` " if character.isprintable() and not character.isspace() else ""
    return f"{shown}({code}{', ' + name if name else ''})"
