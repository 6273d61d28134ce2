"""The walk of a large head: its state in two halves of the key channels, so that the registers hold it.

A read narrows the state to the type of the products. All of it at once, beside the state and what is read, does not
fit; of a half it does. So both halves are read one after the other, each for all that reads. Scores come before: in
the middle of a chunk there is no room for them and for the decay between tokens. With an erase of two rows and a decay
they come from `prepare`; where the walk decays rows, it has the decay of one half at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.triton_functions import Function, Phase, in_functions, outlined
from archc.tiles.triton_lines import (
    CHANNEL,
    Lines,
    buffer_name,
    factor_lines,
    load_line,
    part_of,
    sees,
    vector_line,
)


def has_halves(kind: RecurrenceKind) -> bool:
    """Whether the walk of a class has such a form."""
    return kind.core().decay in ("none", "head", "key")


def guarded(kind: RecurrenceKind) -> bool:
    """Whether such a walk has each chunk in a condition, out of which Triton moves no accumulator.

    Each product has one of its own in tensor memory. Out of a loop they are moved, and then none makes room for
    another: those of an erase of two rows are more than there is.
    """
    return kind.erase == "pair" and kind.core().decay != "none"


class HalvedLines(Lines):
    """The lines of such a walk: tiles of rows are `k1_CK` and `k2_CK`, the state is `S1_VK` and `S2_VK`."""

    parts = ("1", "2")
    keys = "HALF"
    states = ("S1_VK", "S2_VK")

    def __init__(self, kind: RecurrenceKind, program: TileProgram) -> None:
        super().__init__(kind, program, "walk")
        self.erases = kind.erase
        self.scoring: list[str] = []  # the lines of the scores
        self.reading: list[str] = []  # those that read the state

    def channels(self) -> str:
        return "channel1_K, channel2_K = tl.arange(0, HALF), HALF + tl.arange(0, HALF)"

    def scored(self, steps: Sequence[Step]) -> list[str]:
        """The lines of the scores that are made here, and of what they are multiplied with, behind the products."""
        self.scoring = self.of([step for step in steps if step.operation == "pair"])
        return list(self.scoring)

    def body(self, steps: Sequence[Step]) -> list[str]:
        """The lines behind the scores but the update; tiles of values are loaded behind the reads."""
        pairs = [step for step in steps if step.operation == "pair"]
        read = [step for step in steps if step.operation == "read"]
        lines = [f"{step.result}_JC = {step.result}_JC.to(dtype)" for step in pairs]
        self.reading = self.reads(read)
        lines += self.reading
        rest = self.of([step for step in steps if step.operation not in ("pair", "read")])
        values = [] if self.decays_rows else [tile for tile in self.loaded if tile.endswith("_VC")]
        return [*lines, *(load_line(tile) for tile in values), *rest]

    def heading(self) -> list[str]:
        """What a chunk begins with: rows, scores and numbers, and their factors; not what is loaded late."""
        if self.decays_rows:
            return []
        lines: list[str] = []
        for tile in self.loaded:
            if tile.endswith(("_CK", "_K")):
                lines += [_loaded(tile, half) for half in self.parts]
            elif not tile.endswith("_VC"):
                lines.append(load_line(tile))
        return lines + [f"{name} = {text}" for name, text in self.factors.items() if not name.endswith("_JC")]

    def in_functions(
        self, lines: Sequence[str], update: Sequence[str], carried: Sequence[str]
    ) -> tuple[list[str], list[str], list[Function]]:
        """The lines of a chunk and its update, with reads and update as functions: each stands there twice."""
        lines = list(lines)
        begins = next((number for number, line in enumerate(lines) if line in self.scoring), None)
        first = lines.index(self.reading[0])
        phases = []
        if begins is not None:
            if any("j_J1" in line for line in lines):
                lines.insert(begins, "j_J1, c_1C = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]")
                first += 1
            phases.append(Phase("scores_of", "What tokens give each other, half by half.", begins, first))
        update = list(update)
        if self.erases == "pair" and begins is None:
            first -= self.load_late(lines, first, update)
        behind = first + len(self.reading)
        phases.append(Phase("read_state", "What tokens read of the state, half by half.", first, behind))
        if self.erases == "pair":
            says = "What tokens write, and what others read of that."
            phases.append(Phase("within_chunk", says, behind, len(lines)))
        lines, functions = in_functions(lines, phases, [*update, *carried, "o_VC", "U_VC"])
        last = outlined("next_state", "The state behind a chunk, half by half.", update, carried)
        return lines, [last.call], [*functions, last]

    def load_late(self, lines: list[str], first: int, update: list[str]) -> int:
        """Move loads from ahead of the reads to where scores and the update need them; how many they were."""
        read = " ".join(self.reading)
        late = {line.partition(" = ")[0]: line for line in lines[:first] if "_tiles.load(" in line}
        late = {name: line for name, line in late.items() if name not in read}
        own = [line for line in late.values() if line.partition(" = ")[0].endswith("_CK")]
        rest = [line for line in late.values() if line not in own]
        for line in late.values():
            lines.remove(line)
        place = first - len(late) + len(self.reading)
        lines[place:place] = rest
        update[:0] = own
        return len(late)

    def reads(self, steps: Sequence[Step]) -> list[str]:
        """What reads the state, half by half."""
        lines, behind = [], []
        for half in self.parts:
            self.ready.clear()
            for step in steps:
                tile, factor = self.half_row(step.operands[0], half)
                sign, number = ("=", f"  # {step.number}") if half == "1" else ("+=", "")
                text = f"dot(S{half}_VK.to(dtype), tl.trans({tile}))"
                lines += [*self.waiting, f"{step.result}_VC {sign} {text}{number}"]
                self.waiting.clear()
                if factor and half == "1":
                    behind.append(f"{step.result}_VC *= {factor}[None, :]")
                self.made.add(step.result)
        return lines + behind

    def half_row(self, row: Row, half: str) -> tuple[str, str]:
        """A row that meets one half of the state: its tile, and the factor a token that is left for outside."""
        self.part = half
        tile, factor = self.row(row)
        return tile if self.decays_rows else part_of(tile, half), factor

    def _pair(self, step: Step) -> Iterator[str]:
        left, right = (self.load(f"{row.base}_CK") for row in step.operands)
        target = f"{step.result}_JC"
        for half in self.parts:
            product = f"dot({part_of(right, half)}, tl.trans({part_of(left, half)}))"
            yield f"{target} {'=' if half == '1' else '+='} {product}"
        if self.decay == "head":
            between = self.decay_between(step)
            if between not in self.made:
                self.made.add(between)
                yield f"{between} = {self.factors[between]}"
            yield f"{target} *= {between}"
        else:
            yield f"{target} = tl.where({sees(step)}, {target}, 0.0)"
        yield from self.with_scalar(step)

    def _update(self, step: Step) -> Iterator[str]:
        decay = ""
        if self.decay == "head":
            self.load("decay_C")
            self.end()
            decay = "tl.exp(G_end)"
        elif self.decay == "key":
            decay = "tl.exp({})[None, :]"
            if not self.decays_rows:
                self.load("G_end_K")
        for half in self.parts:
            if self.decays_rows:
                self.waiting += factor_lines("out", half)
                self.ready = {"out"}
            if decay:
                yield f"S{half}_VK *= {decay.format(part_of('G_end_K', half))}"
            for x, y in zip(step.operands[1::2], step.operands[2::2], strict=True):
                tile, factor = self.half_row(x, half)
                values = self.value(y)
                columns = f"({values} * {factor}[None, :])" if factor else values
                yield f"S{half}_VK += dot({columns}.to(dtype), {tile})"


def _loaded(tile: str, half: str) -> str:
    """The line that loads it."""
    name, channel = part_of(tile, half), CHANNEL[half]
    if tile.endswith("_CK"):
        return f"{name} = {buffer_name(tile)}_tiles.load([start, {channel}])"
    return vector_line(name, buffer_name(tile), f"channel{half}_K")
