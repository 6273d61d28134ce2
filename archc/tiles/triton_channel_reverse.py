"""Print the reverse of a tile program with a decay per key channel as two Triton kernels.

The forward has kept its scores; those of an erase of two rows are made again by its `prepare`. `walk_back` carries dS
from the end of a sequence to its start: gradients of values and of scores, and of the rows that write as far as they
come through dS; it is cut along V. Then `walk_again` carries S from the start of every segment and makes all else. In
it every channel is on its own, pairs of tokens included, so it is cut along K: its tiles are small, and no sum is left
open. Rows are loaded again where they are used again, and a gradient that is done is written at once: little lives from
one kind of pairs to the next.

A decay receives what is read through it, less what pairs write from its token on, writes into the state before it,
and e^G_end <S, dS_next>, channel by channel. The last is known exactly where a segment starts, and is carried from
there: <S, dS> less what the chunk reads from S is e^G_end <S, dS_next>; with what it writes it is <S_next, dS_next>.
Where that difference is no more than rounding, nothing is left.
Pairs that no decay touches join only after the decay has taken its part, and no sum over some tokens of a
chunk is the difference of two sums: nothing small is a difference of large numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from archc.templates import environment
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Row, Step
from archc.tiles.reverse import reverse
from archc.tiles.triton_functions import Function, Phase, in_functions
from archc.tiles.triton_lines import FACTORS, factor_lines, load_line, row_line, scores_kept
from archc.tiles.triton_source import (
    INPUTS,
    buffer_line,
    constants_given,
    open_lines,
    walk_form,
)
from archc.tiles.triton_spans import Ahead
from archc.tiles.views import arguments, public_facts


@dataclass(frozen=True, slots=True)
class ChannelLaunch:
    """How the kernels are cut: value columns and key channels of a program; warps and stages of each kernel.

    guarded: whether a chunk of `walk_back` stands in a condition, as that of a decay per head.
    """

    columns: int
    channels: int
    back: tuple[int, int]
    again: tuple[int, int]
    guarded: bool = False


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


def has_channel_reverse(kind: RecurrenceKind) -> bool:
    """Whether a class has these kernels."""
    return form_of(kind).form == "chunk" and kind.core().decay == "key" and kind.normalize == "none"


def channel_reverse_source(
    kind: RecurrenceKind,
    launch: ChannelLaunch,
    ahead: Ahead | None = None,
    printer: type[Again] | None = None,
    template: str = "recurrence/kernels_channel_reverse.py.jinja",
) -> str:
    """The text of `walk_back`, `walk_again` and their launcher `chunk_backward`, for the module of the forward kernels.

    `chunk_backward` has the arguments and results of that of the torch form, with the states that the forward kernels
    keep. ahead: what finds how spans follow each other, without which sequences are walked whole. printer: of
    `walk_again`, with its template, where a class needs another one. Raises ValueError for a class without these
    kernels.
    """
    if not has_channel_reverse(kind):
        raise ValueError(f"no reverse kernels by channel for a decay of the class {kind.core().decay}")
    found = arguments(kind)
    facts = public_facts(kind, found)
    back, again = channel_kernels(kind, printer)
    form = walk_form(kind)
    assert form.prepare is not None
    inputs = [argument.name for argument in found]
    products = ("do", "k", "v", "w", "r")  # rows that meet in a product have one type
    made = [*back.made, *again.made]
    view = {
        "launch": launch,
        "ahead": ahead,
        "halvings": kind.chunk.bit_length() - 1,
        "back": back,
        "again": again,
        "inputs": inputs,
        "typed": facts["typed"],
        "typed_kept": "".join(f"{name}: Tensor, " for name in (*form.kept, *form.scores)),
        "heads": facts["heads"],
        "contiguous": [
            _each([name for name in ("do", *inputs) if name in products], "{0}.to(q.dtype).contiguous()"),
            _each([name for name in ("dfinal", *inputs) if name not in products], "{0}.contiguous()"),
        ],
        "kept_all": bool(form.scores),
        "buffers": [buffer_line(name, axes) for name, axes in form.buffers.items()],
        "prepare": [*form.prepare.arguments, "cu_seqlens", "N", "T", *constants_given(form.prepare)],
        "values": _made([name for name in made if name in ("dv", "dE")], "V"),
        "parts": {name: "CHUNK" if name in back.scores else "K" for name in (*back.states, *back.scores)},
        "rows": _made([name for name in made if name in ("dq", "dk", "dw", "dr")], "K"),
        "given": _given,
        "later": any("later(" in line for line in (*again.lines, *(f.text for f in again.functions))),
        "gradient": {name: "dE" if name == "v" and "dv" not in made else f"d{name}" for name in inputs},
    }
    return environment().get_template(template).render(view)


def _each(names: list[str], text: str) -> str:
    """The line that does the same to each of several tensors."""
    return f"{', '.join(names)} = ({text.format('x')} for x in ({', '.join(names)}))"


def _made(names: list[str], width: str) -> str:
    """The line that makes gradients in the type of the products."""
    text = f"make(B, T, H, {width}, **narrow)"
    if len(names) > 1:
        text = f"({text} for _ in range({len(names)}))"
    return f"{', '.join(names)} = {text}"


def channel_kernels(kind: RecurrenceKind, printer: type[Again] | None = None) -> tuple[View, View]:
    """The two kernels of a class, `walk_back` and `walk_again`."""
    return ChannelBack(kind).view(), (printer or Again)(kind).view()


def _given(name: str) -> str:
    """The value of a compile-time argument at the launch."""
    text = {
        "C": "CHUNK",
        "COLUMNS": "BACK_COLUMNS",
        "CHANNELS": "min(AGAIN_CHANNELS, BLOCK_K)",
        "PACKED": "cu_seqlens is not None",
    }
    return f"{name.removesuffix('_heads')}.shape[2]" if name.endswith("_heads") else text.get(name, name)


class _Lines:
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
        if tile not in self.made and tile not in self.loaded:
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


class ChannelBack(_Lines):
    """`walk_back`: gradients of values and of scores, and of the rows that write through dS."""

    def __init__(self, kind: RecurrenceKind) -> None:
        super().__init__(kind)
        self.ready: set[str] = set()  # factors that rows are decayed with here

    def decayed(self, base: str, factor: str) -> str:
        """A row that meets dS."""
        tile = f"{base}_{factor}_CK"
        if tile not in self.ready:
            if factor not in self.ready:
                self.out += factor_lines(factor)
            self.ready |= {factor, tile}
            self.out.append(row_line(base, factor))
            self.loaded |= dict.fromkeys((f"{base}_CK", "decay_CK"))
        return tile

    def view(self) -> View:
        self.values()
        self.phase("value_gradients", "What values receive, and what erases read of the state.", 0)
        scores = self.score_gradients()
        states = []
        for step in self.steps:
            if step.operation == "project" and step.operands[1].base == "dS_next":
                y = self.load(f"{step.operands[0].base}_VC")
                self.put(f"{step.result}_CK", f"dot(tl.trans({y}), dS_VK.to(dtype))", step)
                self.store(f"{step.result}_CK")
                states.append(step.result)
        self.update()
        constants = ["H", *self.heads(), "K", "BLOCK_K", "V", "COLUMNS", "C", "PACKED", "SEGMENT"]
        opening = open_lines([*self.loaded, *self.stored])
        for base in (*states, *scores):
            part = f"{base} + block.to(tl.int64) * total * H * {'C' if base in scores else 'K'}"
            opening = [line.replace(f"tokens({base},", f"tokens({part},") for line in opening]
        made = [tile.rsplit("_", 1)[0] for tile in self.stored]
        lines, functions = in_functions(self.out, self.phases, ["dS_VK"])
        return View(self.names(), made, constants, opening, lines, states, scores, functions)

    def score_gradients(self) -> list[str]:
        """dP = dz y^T, which `walk_again` needs for every block of key channels."""
        made: list[str] = []
        for step in self.steps if scores_kept(self.kind) else ():
            if step.operation == "pair":
                dz, y = step.operands
                text = f"dot(tl.trans({self.narrow(dz)}), {self.load(f'{y.base}_VC')})"
                scale = " * scale" if dz.base == "do" else ""
                self.put(f"{step.result}_CJ", f"{text}{scale}", step, step.sign < 0)
                self.stored[f"{step.result}_JC"] = None  # a row of memory is a token that reads
                name = step.result
                self.out.append(f"{name}_tiles.store([start, 0], {name}_CJ.to({name}.dtype.element_ty))")
                made.append(name)
        return made

    def values(self) -> None:
        """dv and dU = P^T dz + x dS, then dE = X^T dU."""
        for step in self.steps:
            target = f"{step.result}_VC"
            if step.operation == "apply" and step.operands[0].base in self.scores:
                dz = step.operands[1]
                scores = self.load(f"{step.operands[0].base}_JC")
                product = f"dot({self.narrow(dz)}, tl.trans({scores}))"
                self.put(target, f"{product}{' * scale' if dz.base == 'do' else ''}", step)
            elif step.operation == "read" and step.operands[1].base == "dS_next":
                x = step.operands[0]
                product = f"dot(dS_VK.to(dtype), tl.trans({self.decayed(x.base, 'out')}))"
                factor = f" * {self.scalar(x.scalar)}[None, :]" if x.scalar else ""
                self.put(target, f"{product}{factor}", step)
            elif step.operation == "solve":
                inverse, dU = step.operands
                text = f"dot({dU.base}_VC.to(dtype), tl.trans({self.load(f'{inverse.base}_JC')}))"
                self.put(target, text, step)
                self.store(target)
        if "dv_VC" in self.made:
            self.store("dv_VC")

    def scalar(self, name: str) -> str:
        if f"{name}_C" not in self.loaded:
            self.out.append("inside_C = start + tl.arange(0, C) < end")
        return self.load(f"{name}_C")

    def narrow(self, row: Row) -> str:
        """A tile of values as products take it."""
        tile = self.load(f"{row.base}_VC")
        return f"{tile}.to(dtype)" if tile in self.made else tile

    def store(self, tile: str) -> None:
        self.stored[tile] = None
        name, axes = tile.rsplit("_", 1)
        if axes == "VC":
            self.out.append(
                f"{name}_tiles.store([start, column], tl.trans({tile}).to({name}.dtype.element_ty))"
            )
        else:
            self.out.append(f"{name}_tiles.store([start, 0], {tile}.to({name}.dtype.element_ty))")

    def update(self) -> None:
        step = next(step for step in self.steps if step.operation == "update")
        if "out" not in self.ready:
            self.out += factor_lines("out")[:2]  # the sum over the chunk alone
        self.out.append(f"dS_VK *= tl.exp(G_end_K)[None, :]  # {step.number}")
        for x, dz, sign in zip(step.operands[1::2], step.operands[2::2], step.signs, strict=True):
            rows = self.decayed(x.base, FACTORS[x.exponent])
            value = (
                f"({self.load(f'{dz.base}_VC')} * scale).to(dtype)" if dz.base == "do" else self.narrow(dz)
            )
            self.out.append(f"dS_VK {'-' if sign < 0 else '+'}= dot({value}, {rows})")


class Again(_Lines):
    """`walk_again`: gradients of the rows that read, those of pairs within a chunk, and that of the decay."""

    def __init__(self, kind: RecurrenceKind) -> None:
        super().__init__(kind)
        self.here: set[str] = set()  # rows that need not be loaded here
        self.reads = [
            step for step in self.steps if step.operation == "project" and step.operands[1].base == "S"
        ]
        self.read_of = {step.result: step.result[1:].removesuffix("_read") for step in self.reads}

    def view(self) -> View:
        self.reads_and_pairs()
        first = len(self.out)
        self.decay()
        self.phase("decay_gradients", "What the log decays receive, and anchor behind the chunk.", first)
        first = len(self.out)
        self.untouched()
        if self.kind.erase == "pair":
            self.phase(
                "near_gradients", "What rows that write receive from pairs that no decay touches.", first
            )
        self.finish()
        self.update()
        opening = [self.open(tile) for tile in (*self.loaded, *self.stored) if not tile.endswith("_C")]
        constants = ["H", *self.heads(), "K", "CHANNELS", "V", "BLOCK_V", "C", "PACKED", "SEGMENT"]
        made = [tile.rsplit("_", 1)[0] for tile in self.stored]
        lines, functions = in_functions(self.out, self.phases, ["S_VK", "anchor_K"])
        return View(self.names(), made, constants, opening, lines, [], [], functions)

    # Memory.

    def open(self, tile: str) -> str:
        name, axes = tile.rsplit("_", 1)
        heads = f"{name}_heads" if name in INPUTS else "H"
        width, block = {"CK": ("K", "CHANNELS"), "CV": ("V", "BLOCK_V"), "CJ": ("C", "C")}[axes]
        return f"{name}_tiles = tokens({name}, end, h, H, {heads}, {width}, C, {block})"

    def load(self, tile: str) -> str:
        if tile not in self.made and tile not in self.here:
            self.here.add(tile)
            self.loaded.setdefault(tile)
            if tile.endswith("_C"):
                self.out.append("inside_C = start + tl.arange(0, C) < end")
            self.out.append(self.load_line(tile))
        return tile

    def load_line(self, tile: str) -> str:
        name, axes = tile.rsplit("_", 1)
        if axes == "C":
            return load_line(tile)
        wide = ".to(tl.float32)" if name == "decay" else ""
        return f"{tile} = {name}_tiles.load([start, {'channel' if axes == 'CK' else '0'}]){wide}"

    def store(self, tile: str) -> None:
        name = tile.rsplit("_", 1)[0]
        self.stored[tile] = None
        self.out.append(f"{name}_tiles.store([start, channel], {tile}.to({name}.dtype.element_ty))")

    # What the lines are made of.

    def rows(self, row: Row) -> str:
        """A row as it takes part: with its scalar, if it has one."""
        if not row.scalar:
            return self.load(f"{row.base}_CK")
        tile = f"{row.scalar}_{row.base}_CK"
        if tile not in self.here:
            scaled = f"{self.load(f'{row.base}_CK')} * {self.load(f'{row.scalar}_C')}[:, None]"
            self.out.append(f"{tile} = ({scaled}).to(dtype)")
            self.here.add(tile)
        return tile

    def gradients(self, P: Step) -> tuple[str, str]:
        """The names of what both rows of a score receive."""
        applied = [
            step
            for step in self.steps
            if step.operation == "apply" and step.operands[0].base == f"d{P.result}"
        ]
        x, y = sorted(applied, key=lambda step: step.transposed)
        return x.result, y.result

    def own(self, P: Step) -> bool:
        """Whether pairs of a token with itself belong to a score."""
        return P.operands[0].exponent != "<" and P.mask == "inclusive"

    # The lines.

    def reads_and_pairs(self) -> None:
        """One row that reads after the other."""
        for step in self.reads:
            self.here = {tile for tile in self.here if tile.endswith("_C")}
            first, row = len(self.out), self.read_of[step.result]
            self.one_row(step)
            self.phase(
                f"{row}_gradients", f"What {row} receives, and the rows that it meets in a chunk.", first
            )

    def one_row(self, step: Step) -> None:
        """What a row that reads receives: dx = dz S^T, and of the pairs where it reads, which give to rows y too."""
        x, dx, dz = self.read_of[step.result], f"{step.result}_CK", step.operands[0]
        scale = " * scale" if dz.base == "do" else ""
        G = f"tl.cumsum({self.load('decay_CK')}, 0)"
        factor = f"tl.exp({G}{'' if step.into == '+' else ' - decay_CK'})"
        text = f"dot({self.load(f'{dz.base}_CV')}, S_VK.to(dtype)) * {factor}{scale}"
        self.put(dx, text, step, step.sign < 0)
        self.put("seen_K", f"tl.sum({self.load(f'{x}_CK')} * {dx}, 0)")
        scores = [P for P in self.scores.values() if P.operands[0].base == x]
        for P in scores:
            self.pairs(P)
        passed = "passed_CK" if step.into == "+" else "before_CK"  # what the decay receives
        self.put(passed, f"{self.load(f'{x}_CK')} * {dx}")
        # Pairs that meet without a decay come after that.
        for P in scores:
            if self.own(P):
                self.put(dx, f"own_{P.result}_C1 * {self.rows(P.operands[1])}", P)
            elif P.operands[0].exponent == "<":
                self.put(dx, f"dot({self.near(P)}, {self.rows(P.operands[1])})", P)
        if dx in ("dq_CK", "dr_CK"):
            self.store(dx)

    def pairs(self, P: Step) -> None:
        """What pairs give to rows that a decay parts."""
        left, right = P.operands
        before = left.exponent == "<"
        gradient = self.load(f"d{P.result}_CJ")
        if self.own(P):
            own = f"tl.sum(tl.where(j_1J == c_C1, {gradient}, 0.0), 1)"
            self.out.append(f"own_{P.result}_C1 = {own}.to(tl.float32)[:, None]")
        elif before:
            gradient = f"tl.where(j_1J + 1 < c_C1, {gradient}, 0.0)"
        given = f"{gradient}, {self.rows(left)}, {self.rows(right)}, decay_CK, {before}, C"
        self.out.append(f"read_CK, write_CK = pair_gradients({given})  # {P.number}")
        for result, part in zip(self.gradients(P), ("read_CK", "write_CK"), strict=True):
            self.put(f"{result}_CK", part)

    def near(self, P: Step) -> str:
        """Gradients of pairs of a token with the one before it."""
        return f"tl.where(j_1J + 1 == c_C1, {self.load(f'd{P.result}_CJ')}, 0.0).to(dtype)"

    def decay(self) -> None:
        """What the decay receives, before pairs join that it does not touch."""
        gather = next(step for step in self.steps if step.operation == "gather")
        pairs = list(zip(gather.operands[1::2], gather.operands[2::2], strict=True))
        self.out += [
            f"G_CK = tl.cumsum({self.load_line('decay_CK').partition(' = ')[2]}, 0)",
            "G_end_K = tl.sum(tl.where(c_C1 == C - 1, G_CK, 0.0), 0)",
            "left_K = anchor_K - seen_K",
            "anchor_K = tl.where((tl.exp(G_end_K) > 0.0) & (tl.abs(left_K) > eps * tl.abs(seen_K)), left_K, 0.0)",
            "out_CK = tl.exp(G_end_K[None, :] - G_CK)",
        ]
        written = []
        for row, part in pairs:
            if row.exponent == "-":
                self.put("passed_CK", f"{self.rows(row)} * {part.base}_CK", minus=True)
            elif row.exponent == ">":
                self.load(f"{part.base}_CK")
                self.out[-1] += " * out_CK"
                written.append(f"{self.rows(row)} * {part.base}_CK")
        self.out.append(f"written_CK = {' + '.join(written)}")
        self.out.append("ddecay_CK = anchor_K[None, :] + tl.cumsum(passed_CK, 0, reverse=True)")
        if "before_CK" in self.made:
            self.out.append("ddecay_CK += later(before_CK)")
        self.out.append("ddecay_CK += earlier(written_CK)")
        self.store("ddecay_CK")
        self.out.append("anchor_K += tl.sum(written_CK, 0)")

    def untouched(self) -> None:
        """The late parts of rows that write: through dS, and from pairs that meet without a decay."""
        for x, _ in self.writes:
            gradient = f"d{x.base}_write" if f"d{x.base}_read_CK" in self.made else f"d{x.base}"
            self.put(f"{gradient}_CK", f"d{x.base}_state_CK")
        for P in self.scores.values():
            dy = f"{self.gradients(P)[1]}_CK"
            if self.own(P):
                self.put(dy, f"own_{P.result}_C1 * {self.rows(P.operands[0])}", P)
            elif P.operands[0].exponent == "<":
                self.put(dy, f"dot(tl.trans({self.near(P)}), {self.rows(P.operands[0])})", P)

    def finish(self) -> None:
        """Write the gradients; roles of one row come together."""
        for step in self.steps:
            if step.operation == "contract" and step.result != "anchor":
                base = step.operands[0].base
                self.out.append(f"dbeta_C = tl.sum({base}_CK * {step.operands[1].base}_CK, 1)")
                self.stored["dbeta_C"] = None
                put = "dbeta + tl.program_id(0).to(tl.int64) * total * H + h"
                self.out.append(f"tl.store({put} + (start + tl.arange(0, C)) * H, dbeta_C, mask=inside_C)")
            elif step.operation == "combine":
                read, write = step.operands
                scalar = self.load(f"{write.scalar}_C")
                self.put(f"{step.result}_CK", f"{read.base}_CK + {scalar}[:, None] * {write.base}_CK")
        for name in ("dk", "dw"):
            if f"{name}_CK" in self.made:
                self.store(f"{name}_CK")

    def update(self) -> None:
        number = next(step.number for step in self.program.steps if step.operation == "update")
        self.out.append(f"S_VK *= tl.exp(G_end_K)[None, :]  # {number}")
        for x, y in self.writes:
            rows = f"({self.rows(x)} * out_CK).to(dtype)"
            self.out.append(f"S_VK += dot(tl.trans({self.load(f'{y.base}_CV')}), {rows})")
