"""The arguments that an operation takes, and what a call needs to know of the operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

KINDS = ("value", "values", "axes", "pieces", "static", "word", "words", "pair", "init", "cut")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its kind says how it is read.

    value: a traced or static value.  values: any number of them.  axes: one axis or a list.  pieces: any number of
    axes or lists.  static: a static expression.  word(s): bare words that the operation declares, never looked up.
    pair: an expression over `i`, `j`, `s`.  init: an expression over random draws.  cut: a list of values.
    """

    name: str
    kind: str
    required: bool
    keyword_only: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of an operation, parsed from `x, axes: axes, *, bias: static?`; `?` marks optional ones."""

    arguments: tuple[Argument, ...]

    @staticmethod
    def parse(text: str) -> Signature:
        """Read the short form. Raises ValueError for an unknown kind."""
        found: list[Argument] = []
        keyword_only = False
        for piece in filter(None, (part.strip() for part in text.split(","))):
            if piece == "*":
                keyword_only = True
                continue
            optional = piece.endswith("?")
            name, _, kind = piece.rstrip("?").partition(":")
            kind = kind.strip() or "value"
            if kind not in KINDS:
                raise ValueError(f"unknown argument kind {kind!r} in {text!r}")
            found.append(Argument(name.strip(), kind, not optional, keyword_only))
        return Signature(tuple(found))

    def __str__(self) -> str:
        """`x, axes, [over=], [bias=]`: optional arguments in brackets, those that need their name with `=`."""
        shown = (a.name + ("=" if a.keyword_only else "") for a in self.arguments)
        return ", ".join(text if a.required else f"[{text}]" for a, text in zip(self.arguments, shown))


class Callee(Protocol):
    """What a call needs to know of its operation."""

    name: ClassVar[str]
    signature: ClassVar[Signature]
    suffix: ClassVar[str]
    weighted: ClassVar[bool]

    def remembers(self) -> bool:
        """Whether it keeps memory between calls of the model."""
