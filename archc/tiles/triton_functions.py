"""A part of a kernel as a function of its own, so that a kernel stays as short as one that is written by hand.

Triton puts functions where they are called: one costs nothing, and what comes out is what one kernel would be.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from archc.templates import packed

# Names of a kernel that are constants when it is compiled, besides counts of heads.
CONSTANTS = frozenset(
    {
        "H", "K", "V", "C", "BLOCKS", "BLOCK_K", "BLOCK_V", "PART_K", "PART_V", "COLUMNS", "CHANNELS", "HALF",
        "SEGMENT", "PACKED", "dtype",
    }
)  # fmt: skip
WIDTH = 110


@dataclass(frozen=True, slots=True)
class Function:
    """A `@triton.jit` function. says: its docstring, a line. results: what it returns."""

    name: str
    arguments: list[str]
    says: str
    lines: list[str]
    results: list[str]

    @property
    def text(self) -> str:
        """The function as a module has it."""
        given = [f"{name}: tl.constexpr" if constant(name) else name for name in self.arguments]
        head = f"def {self.name}({', '.join(given)}):"
        if len(head) > WIDTH:
            head = f"def {self.name}(\n    {packed(given)},\n):  # fmt: skip"
        returned = [f"return {', '.join(self.results)}"] if self.results else []
        body = [f'"""{self.says}"""', *self.lines, *returned]
        body = [line.replace("\n", "\n    ") for line in body]  # a call may have several lines
        return "\n".join(["@triton.jit", head, *(f"    {line}" for line in body)])

    @property
    def call(self) -> str:
        """What calls it in the loop of a kernel, with names that are the same there: a line, or several."""
        results = f"{', '.join(self.results)} = " if self.results else ""
        line = f"{results}{self.name}({', '.join(self.arguments)})"
        if len(line) <= WIDTH - 12:
            return line
        given = packed(self.arguments, 12).split("\n" + " " * 12)
        return "\n".join([f"{results}{self.name}(", *(f"    {line}" for line in given), ")  # fmt: skip"])


def constant(name: str) -> bool:
    """Whether a name of a kernel is a constant."""
    return name in CONSTANTS or name.endswith("_heads")


def outlined(name: str, says: str, lines: Sequence[str], behind: Sequence[str]) -> Function:
    """Lines of a kernel as a function: its arguments are what they read, its results what lines behind them read."""
    stored = dict.fromkeys(node.id for node in _names(lines) if isinstance(node.ctx, ast.Store))
    read = _read(behind)
    results = [name for name in stored if name in read]
    return Function(name, list(_read(lines)), says, list(lines), results)


def _read(lines: Sequence[str]) -> dict[str, None]:
    """What lines read that they have not made before."""
    stored: set[str] = set()
    given: dict[str, None] = {}
    for node in _names(lines):
        if isinstance(node.ctx, ast.Store):
            stored.add(node.id)
        elif node.id not in stored:
            given.setdefault(node.id)
    return given


@dataclass(frozen=True, slots=True)
class Phase:
    """Lines of a kernel, from the first up to the last but one, that are to be a function of this name."""

    name: str
    says: str
    first: int
    last: int


def in_functions(
    lines: Sequence[str], phases: Sequence[Phase], behind: Sequence[str]
) -> tuple[list[str], list[Function]]:
    """The lines with a call for each of these phases, and the functions. behind: what else is read afterwards."""
    left = list(lines)
    functions: list[Function] = []
    for phase in reversed(phases):
        function = outlined(
            phase.name, phase.says, left[phase.first : phase.last], [*left[phase.last :], *behind]
        )
        left[phase.first : phase.last] = [function.call]
        functions.insert(0, function)
    return left, functions


def _names(lines: Sequence[str]) -> list[ast.Name]:
    """The variables of lines in the order in which they are read and written; one that is added to is both."""
    found: list[ast.Name] = []
    for node in ast.parse("\n".join(lines)).body:
        _visit(node, found)
    return found


def _visit(node: ast.AST, found: list[ast.Name]) -> None:
    if isinstance(node, ast.Name):
        if node.id not in ("tl", "float"):
            found.append(node)
        return
    if isinstance(node, ast.Assign):
        _visit(node.value, found)
        for target in node.targets:
            _visit(target, found)
        return
    if isinstance(node, ast.AugAssign):
        if isinstance(node.target, ast.Name):
            found.append(ast.Name(node.target.id, ast.Load()))
        _visit(node.value, found)
        _visit(node.target, found)
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):  # a function of the module
        for part in (*node.args, *node.keywords):
            _visit(part, found)
        return
    for child in ast.iter_child_nodes(node):
        _visit(child, found)
