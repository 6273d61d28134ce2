"""Values of a kernel that goes entry by entry, and the lines that print them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from archc.printing.printer import Code, filled

MASKS = {"TC": "in_TC", "T": "in_T", "C": "in_C"}


@dataclass(eq=False, slots=True)
class Value:
    """A value of a kernel: a format over others, which are printed as `inner` kind and bind at least as `need`."""

    text: str
    inputs: tuple[Value, ...] = ()
    kind: str = ""
    level: int = 12
    need: int = 0
    wish: str = ""  # what it is called where it has a line of its own
    keep: bool = False  # it always has one
    inner: str | None = None
    model: bool = False  # the same for all tokens

    @property
    def bare(self) -> bool:
        """Whether a name would say no more."""
        return not self.inputs and not self.keep


class Lines:
    """Prints values: a line for what is used twice or has a name, the rest where it is used."""

    def __init__(self, taken: Iterable[str], roots: Sequence[Value]) -> None:
        self.taken = set(taken)
        self.names: dict[Value, str] = {}
        self.uses: dict[Value, int] = {}
        self.model: list[str] = []
        self.own: list[str] = []
        pending, seen = list(roots), set[Value]()
        while pending:
            value = pending.pop()
            self.uses[value] = self.uses.get(value, 0) + 1
            if value not in seen:
                seen.add(value)
                pending += value.inputs

    def text(self, value: Value, kind: str | None = None) -> Code:
        """The value as an expression, which broadcasts to `kind`."""
        for needed in value.inputs:
            if value not in self.names:
                self.bind(needed)
        code = Code(self.names[value]) if value in self.names else self._plain(value)
        wanted = value.kind if kind is None else kind
        if wanted == "TC" and value.kind in ("T", "C"):
            return Code(f"{code.at(12)}{'[:, None]' if value.kind == 'T' else '[None, :]'}")
        return code

    def _plain(self, value: Value) -> Code:
        inner = value.kind if value.inner is None else value.inner
        parts = [self.text(needed, inner).at(value.need) for needed in value.inputs]
        text = filled(value.text, *parts)
        return Code(re.sub(r"\(\(([^()]*)\)\)", r"(\1)", text), value.level)

    def bind(self, value: Value) -> None:
        """Give names to a value and to what it is made of, where they shall have some."""
        if value in self.names:
            return
        for needed in value.inputs:
            self.bind(needed)
        if not value.bare and (value.keep or self.uses.get(value, 0) > 1):
            self.name(value)

    def name(self, value: Value) -> str:
        """A name for the value, in a line of its own."""
        if value not in self.names:
            line = self.text(value).text
            name = fresh(f"{value.wish or 'part'}{'_' if value.kind else ''}{value.kind}", self.taken)
            self.names[value] = name
            (self.model if value.model else self.own).append(f"{name} = {line}")
        return self.names[value]


def fresh(wish: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    name, number = wish, 2
    while name in taken:
        name, number = f"{wish}_{number}", number + 1
    taken.add(name)
    return name


def summed(value: Value, kind: str, model: bool) -> Value:
    """The sum of a tile's entries that exist, of which a tile of another kind is left."""
    axis = {("TC", "T"): ", 1", ("TC", "C"): ", 0"}.get((value.kind, kind), "")
    text = f"tl.sum(tl.where({MASKS[value.kind]}, {{0}}, 0.0){axis})"
    return Value(text, (value,), kind, inner=value.kind, wish=value.wish, model=model)


def loads_first(lines: Sequence[str]) -> list[str]:
    """Lines with what is read from memory ahead of what is computed."""
    loads = [line for line in lines if " = tl.load(" in line]
    return [*loads, *(line for line in lines if line not in loads)]
