"""What both walks of a backward have in common: the order of their lines, names, factors and memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.reverse import reverse
from archc.tiles.triton_functions import Function
from archc.tiles.triton_lines import Lines, load_line
from archc.tiles.triton_normaliser import ReverseNormaliser, divisor
from archc.tiles.triton_source import INPUTS


@dataclass(frozen=True, slots=True)
class View:
    """What the template shows of one kernel.

    loaded, made: tensors that it reads and that it writes. opening: their descriptors. lines: the kernel's steps.
    update: how its state goes on. closing: what comes after that. normaliser: what a vector beside the state adds.
    functions: what the steps call.
    """

    loaded: list[str]
    made: list[str]
    opening: list[str]
    lines: list[str]
    update: list[str]
    closing: list[str]
    normaliser: ReverseNormaliser
    functions: list[Function]

    @property
    def scores(self) -> bool:
        """Whether scores are hidden by who writes and who reads, in the kernel itself."""
        return any("j_J1" in line or "j_1J" in line for line in (*self.lines, *self.update))


def name_of(tile: str) -> str:
    """The tensor that a tile belongs to."""
    return tile.rsplit("_", 1)[0]


def times(*factors: str) -> str:
    return " * ".join(factor for factor in factors if factor)


def plus(*terms: str) -> str:
    return " + ".join(term for term in terms if term)


def scaled(text: str, factor: str, axis: str) -> str:
    """A tile times numbers a token, along its rows or columns."""
    if not factor:
        return text
    return f"{text} * {factor if ' ' not in factor else f'({factor})'}{axis}"


class Gradients(Lines):
    """Lines of the reverse program for one of its kernels.

    Scores lack their row scalar here: it stands for all that a token writes, so it is multiplied in at the end.
    """

    def __init__(self, kind: RecurrenceKind, program: TileProgram, kernel: str) -> None:
        super().__init__(kind, program, kernel)
        update = next(step for step in program.steps if step.operation == "update")
        self.scores_of = {step.result: step for step in program.steps if step.operation == "pair"}
        self.writes = {
            x.base: y.base for x, y in zip(update.operands[1::2], update.operands[2::2], strict=True)
        }
        self.scalar = next((f"{x.scalar}_C" for x in update.operands[1::2] if x.scalar), "")
        self.decayed_rows = self.decay == "head"
        self.steps = reverse(program).steps
        self.pairs = {f"{name}_JC": P for name, P in self.scores_of.items()}
        self.pairs |= {f"{step.result}_JC": step for step in self.steps if step.operation == "pair"}
        self.placed: set[str] = set()
        self.stored: list[str] = []
        self.twins: list[str] = []
        self.functions: list[Function] = []
        self.starts: list[int] = []  # of the groups among the lines
        self.ahead: list[str] = []  # tiles and factors that come before the first step of the next group
        if kind.beside:
            self.load("z_C")
            self.factor("share_C", f"tl.where(inside_C, scale / {divisor(kind, self)}, 0.0)")

    def view(self) -> View:
        """The kernel's lines, each with the number of the step that it undoes."""
        lines: list[str] = []
        for steps, stores in self.groups():
            self.starts.append(len(lines))
            for name in self.ahead:
                self.need(lines, name)
            for step in steps:
                self.place(lines, self.numbered(step))
            self.place(lines, [self.put_out(tile) for tile in stores])
        update = next(step for step in self.steps if step.operation == "update")
        self.placed -= self.read_again()
        last: list[str] = []
        self.place(last, self.numbered(update))
        closing: list[str] = []
        self.place(closing, self.closing())
        opening = [self.open(tile) for tile in (*self.loaded, *self.stored)]
        names = list(dict.fromkeys(name_of(tile) for tile in self.loaded))
        made = [name_of(tile) for tile in self.stored]
        opening = [*filter(None, opening), *self.twins]
        return View(names, made, opening, lines, last, closing, self.normaliser(), self.functions)

    def read_again(self) -> set[str]:
        """Tiles that the state's update reads again, rather than holding them until then."""
        return set()

    def closing(self) -> list[str]:
        """Lines behind the state's update."""
        return []

    def normaliser(self) -> ReverseNormaliser:
        """What a vector beside the state adds."""
        return ReverseNormaliser()

    def groups(self) -> Iterator[tuple[list[Step], list[str]]]:
        """The steps in the order of the kernel, each group with the tiles that are finished then.

        One gradient after the other: what is still being added to is held in registers.
        """
        raise NotImplementedError

    def numbered(self, step: Step) -> list[str]:
        """The lines of a step."""
        text = list(getattr(self, f"_{step.operation}")(step))
        if not text or not step.number:
            return text
        first, *rest = text[0].split("\n")  # a call may have several lines
        return ["\n".join([f"{first}  # {step.number}", *rest]), *text[1:]]

    def place(self, out: list[str], lines: list[str]) -> None:
        """Append lines, each after what it needs and what was not needed before: tiles, factors, scores."""
        for line in lines:
            for name in re.findall(r"\w+", line):
                if name in self.pairs and name not in self.placed and not line.startswith(f"{name} ="):
                    self.placed.add(name)
                    self.place(out, self.numbered(self.pairs[name]))
                else:
                    self.need(out, name)
            out.append(line)

    def need(self, out: list[str], name: str) -> None:
        """Append the lines that make a tile or a factor, if it is one and is not there yet."""
        if name in self.placed:
            return
        if name in self.loaded:
            self.placed.add(name)
            out.append(self.take_in(name))
        elif name in self.factors:
            self.placed.add(name)
            self.place(out, [f"{name} = {self.factors[name]}"])

    # Names and factors.

    def reads(self, step: Step) -> bool:
        """Whether a step makes the gradient of rows that read the state."""
        return step.operation == "project" and step.operands[1].base == "S"

    def both(self, base: str) -> bool:
        """Whether rows both write and read."""
        roles = {row for step in self.program.steps for row in step.operands if row.base == base}
        return len(roles) > 1

    def joined(self, base: str) -> bool:
        """Whether `walk_again` finishes the gradient of rows that write: as they read too, or as two rows write, whose
        pairs would be too much beside dS."""
        return self.both(base) or self.kind.erase == "pair"

    def gradient_of_write(self, base: str) -> str:
        """What rows receive as writers, in one tile with what comes through the state."""
        return f"d{base}_write" if self.joined(base) else f"d{base}"

    def number(self, name: str) -> str:
        """A number a token: loaded on first use, if it has one."""
        return self.load(name) if name else ""

    def scale(self, dz: Row, axis: str = "") -> str:
        """What multiplies do: the scale or, where a normaliser divides each token, its share of that."""
        if dz.base != "do":
            return ""
        return f"share_C{axis}" if self.kind.beside else "scale"

    def from_output(self, dz: Row, product: str) -> str:
        """What a pair receives through o, and through what divides o."""
        scaled = times(product, self.scale(dz, "[None, :]"))
        return f"({scaled} + {self.divided()}[None, :])" if self.kind.beside else scaled

    def divided(self) -> str:
        """What a token's normaliser receives, `[C]`."""
        return self.load("dz_C")

    def decay_of(self, exponent: str) -> str:
        return self.decayed(exponent) if exponent and self.decayed_rows else ""

    def between(self, P: Step) -> str:
        """`e^(G_i - G_j)` for the pairs of a score."""
        before = P.operands[0].exponent == "<"
        self.load("decay_C")
        self.factor("G_C", "tl.cumsum(decay_C, 0)")
        above = "(G_C - decay_C)" if before else "G_C"
        return self.factor(
            f"between{'_before' if before else ''}_{P.mask}_JC",
            f"tl.exp(tl.where({self.seen(P)}, {above}[None, :] - G_C[:, None], -float('inf')))",
        )

    def seen(self, P: Step) -> str:
        return f"j_J1 {'<' if P.mask == 'strict' else '<='} c_1C"

    def masked(self, P: Step, product: str) -> str:
        """A tile of pairs, with the decay between them or zero where they do not see each other."""
        if self.decayed_rows:
            return f"{product} * {self.between(P)}"
        return f"tl.where({self.seen(P)}, {product}, 0.0)"

    def add(self, target: str, text: str) -> str:
        """`target = text`, or added to what is there."""
        sign = "+=" if target in self.made else "="
        self.made.add(target)
        return f"{target} {sign} {text}"

    # Memory. What is a sum over value columns has room for each block of them.

    def open(self, tile: str) -> str:
        """The descriptor of a tensor whose tiles are loaded or stored."""
        name, axes = tile.rsplit("_", 1)
        if axes == "C":
            return ""
        heads = f"{name}_heads" if name in INPUTS else "H"
        width, block = {"V": ("V", "COLUMNS"), "J": ("C", "C")}.get(axes[0], ("K", "BLOCK_K"))
        part = f"{name} + block * K" if width == "K" and name not in INPUTS else name
        return f"{name}_tiles = tokens({part}, end, h, H, {heads}, {width}, C, {block})"

    def take_in(self, tile: str) -> str:
        """The line that loads a tile."""
        name, axes = tile.rsplit("_", 1)
        if name == "z":
            return "z_C = scalars(z, start, inside_C, h, H, H)"
        if axes == "C" and name not in INPUTS:
            return f"{tile} = scalars({name} + block, start, inside_C, h, H, H)"
        return load_line(tile)

    def put_out(self, tile: str) -> str:
        """The line that stores a gradient, or what the other kernel needs."""
        self.stored.append(tile)
        name, axes = tile.rsplit("_", 1)
        match axes:
            case "CK":
                return f"{name}_tiles.store([start, 0], {tile}.to({name}.dtype.element_ty))"
            case "KC":
                return f"{name}_tiles.store([start, 0], tl.trans({tile}).to({name}.dtype.element_ty))"
            case "VC":
                return f"{name}_tiles.store([start, column], tl.trans({tile}).to({name}.dtype.element_ty))"
            case _:
                return f"put_scalars({name} + block, {tile}, start, inside_C, h, H)"

    # Steps that a kernel leaves to the other one, or that the tiles here hold already: pairs that no decay touches.

    def _nothing(self, step: Step) -> Iterator[str]:
        yield from ()

    _cumulative = _extract = _scale = _add = _invert = _nothing
