"""What archc tells a user: places in source text, diagnostics with codes, and the error that carries them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A stretch of one source text. Lines and columns count characters from 1; the end is exclusive."""

    path: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


NOWHERE = Span("", 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Label:
    """A second place that explains the first, with a few words: "n_heads declared here"."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake: a stable code, the place, what is wrong there, why, and a way out."""

    code: str
    message: str
    span: Span = NOWHERE
    note: str = ""
    help: str = ""
    labels: tuple[Label, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.span}: {self.code}: {self.message}"


class SpecError(Exception):
    """The input is at fault. Carries every diagnostic found, in the order of their places."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))


class MachineError(Exception):
    """The machine is at fault: no space, no permission, another build in the way."""


class Reporter:
    """Collects diagnostics so that all mistakes of a file come at once."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._places: set[tuple[str, Span]] = set()

    def error(
        self,
        code: str,
        message: str,
        span: Span = NOWHERE,
        *,
        note: str = "",
        help: str = "",
        labels: Iterable[Label] = (),
    ) -> Diagnostic:
        """Record a mistake and go on. The same code at the same place is recorded once."""
        found = Diagnostic(code, message, span, note, help, tuple(labels))
        if len(self._places) != len(self.diagnostics):  # someone took diagnostics back
            self._places = {(each.code, each.span) for each in self.diagnostics}
        if (code, span) not in self._places:
            self._places.add((code, span))
            self.diagnostics.append(found)
        return found

    def raise_if_any(self) -> None:
        """Raise `SpecError` with everything recorded so far, ordered by place."""
        if self.diagnostics:
            raise SpecError(sorted(self.diagnostics, key=lambda d: d.span))
