"""What prints the walks of a backward with a decay per key channel: tiles that are loaded late, named lines."""

from __future__ import annotations

from dataclasses import dataclass

from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Step
from archc.tiles.reverse import reverse
from archc.tiles.triton_functions import Function, Phase
from archc.tiles.triton_lines import load_line
from archc.tiles.triton_source import INPUTS
from archc.tiles.triton_squares import SQUARES, score_lines, shares_squares


@dataclass(frozen=True, slots=True)
class View:
    """What the template shows of one kernel: tensors that it reads and makes, their descriptors, its lines."""

    loaded: list[str]
    made: list[str]
    constants: list[str]
    opening: list[str]
    lines: list[str]
    states: list[str]  # parts of gradients that come through dS
    scores: list[str]  # gradients of scores
    functions: list[Function]  # what the lines call


class ChannelLines:
    """The lines of one kernel as they are printed. A tile is loaded right before the first line that uses it."""

    def __init__(self, kind: RecurrenceKind) -> None:
        self.kind = kind
        self.program = forward(kind)
        self.steps = reverse(self.program).steps
        self.scores = {step.result: step for step in self.program.steps if step.operation == "pair"}
        update = next(step for step in self.program.steps if step.operation == "update")
        self.writes = list(zip(update.operands[1::2], update.operands[2::2], strict=True))
        self.out: list[str] = []
        self.loaded: dict[str, None] = {}
        self.made: dict[str, None] = {}
        self.stored: dict[str, None] = {}
        self.phases: list[Phase] = []

    def phase(self, name: str, says: str, first: int) -> None:
        """Make a function of the lines since the first one: of erases alone, whose kernels are long."""
        if self.kind.erase != "none":
            self.phases.append(Phase(name, says, first, len(self.out)))

    def load(self, tile: str) -> str:
        """A tile that was made, or comes from memory."""
        name = tile.rsplit("_", 1)[0]
        if tile not in self.made and name in SQUARES and shares_squares(self.kind):
            lines, squares = score_lines(self.kind, name)
            self.out += lines
            self.loaded |= dict.fromkeys(squares)
            self.made[tile] = None
        elif tile not in self.made and tile not in self.loaded:
            self.loaded[tile] = None
            self.out.append(self.load_line(tile))
        return tile

    def load_line(self, tile: str) -> str:
        return load_line(tile)

    def put(self, tile: str, text: str, step: Step | None = None, minus: bool = False) -> None:
        """`tile = text`, or added to it, with the number of the step that is undone."""
        sign = ("-= " if minus else "+= ") if tile in self.made else "= -" if minus else "= "
        if sign == "+= " and text.startswith("-"):
            sign, text = "-= ", text[1:]
        self.made[tile] = None
        self.out.append(f"{tile} {sign}{text}{f'  # {step.number}' if step is not None else ''}")

    def names(self) -> list[str]:
        """The tensors that are read."""
        return list(dict.fromkeys(tile.rsplit("_", 1)[0] for tile in self.loaded))

    def heads(self) -> list[str]:
        return [f"{name}_heads" for name in INPUTS if name in self.names()]
