"""Print the reverse of a tile program with a decay per key channel as two Triton kernels.

The forward has kept its scores. `walk_back` carries dS from the end of a sequence to its start: gradients of values and
of scores, and of the rows that write as far as they come through dS; it is cut along V. Then `walk_again` carries S
from the start of every segment and makes all else; it is cut along K.

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
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Row
from archc.tiles.triton_channel_again import Again
from archc.tiles.triton_channel_lines import ChannelLines, View
from archc.tiles.triton_functions import in_functions
from archc.tiles.triton_lines import FACTORS, factor_lines, row_line, scores_kept
from archc.tiles.triton_source import open_lines, walk_form
from archc.tiles.triton_spans import Ahead
from archc.tiles.triton_squares import ABOVE, shares_squares, square_of_gradients
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


def has_channel_reverse(kind: RecurrenceKind) -> bool:
    """Whether a class has these kernels."""
    return form_of(kind).form == "chunk" and kind.core().decay == "key" and kind.normalize == "none"


def channel_reverse_source(
    kind: RecurrenceKind,
    launch: ChannelLaunch,
    ahead: Ahead | None = None,
) -> str:
    """The text of `walk_back`, `walk_again` and their launcher `chunk_backward`, for the module of the forward kernels.

    `chunk_backward` has the arguments and results of that of the torch form, with the states that the forward kernels
    keep. ahead: what finds how spans follow each other, without which sequences are walked whole. Raises ValueError
    for a class without these kernels.
    """
    if not has_channel_reverse(kind):
        raise ValueError(f"no reverse kernels by channel for a decay of the class {kind.core().decay}")
    found = arguments(kind)
    facts = public_facts(kind, found)
    back, again = channel_kernels(kind)
    form = walk_form(kind)
    inputs = [argument.name for argument in found]
    products = ("do", "k", "v", "w", "r")  # rows that meet in a product have one type
    made = [*back.made, *again.made]
    view = {
        "launch": launch,
        "ahead": ahead,
        "back": back,
        "again": again,
        "inputs": inputs,
        "squares": shares_squares(kind),
        "typed": facts["typed"],
        "typed_kept": "".join(f"{name}: Tensor, " for name in (*form.kept, *form.scores)),
        "heads": facts["heads"],
        "contiguous": [
            _each([name for name in ("do", *inputs) if name in products], "{0}.to(q.dtype).contiguous()"),
            _each([name for name in ("dfinal", *inputs) if name not in products], "{0}.contiguous()"),
        ],
        "values": _made([name for name in made if name in ("dv", "dE")], "V"),
        "parts": {name: "CHUNK" if name in back.scores else "K" for name in (*back.states, *back.scores)},
        "rows": _made([name for name in made if name in ("dq", "dk", "dw", "dr")], "K"),
        "given": _given,
        "later": any("later(" in line for line in (*again.lines, *(f.text for f in again.functions))),
        "gradient": {name: "dE" if name == "v" and "dv" not in made else f"d{name}" for name in inputs},
    }
    return environment().get_template("recurrence/kernels_channel_reverse.py.jinja").render(view)


def _each(names: list[str], text: str) -> str:
    """The line that does the same to each of several tensors."""
    return f"{', '.join(names)} = ({text.format('x')} for x in ({', '.join(names)}))"


def _made(names: list[str], width: str) -> str:
    """The line that makes gradients in the type of the products."""
    text = f"make(B, T, H, {width}, **narrow)"
    if len(names) > 1:
        text = f"({text} for _ in range({len(names)}))"
    return f"{', '.join(names)} = {text}"


def channel_kernels(kind: RecurrenceKind) -> tuple[View, View]:
    """The two kernels of a class, `walk_back` and `walk_again`."""
    return ChannelBack(kind).view(), Again(kind).view()


def _given(name: str) -> str:
    """The value of a compile-time argument at the launch."""
    text = {
        "C": "CHUNK",
        "COLUMNS": "BACK_COLUMNS",
        "CHANNELS": "min(AGAIN_CHANNELS, BLOCK_K)",
        "PACKED": "cu_seqlens is not None",
    }
    return f"{name.removesuffix('_heads')}.shape[2]" if name.endswith("_heads") else text.get(name, name)


class ChannelBack(ChannelLines):
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
        first = len(self.out)
        self.update()
        if shares_squares(self.kind):
            self.phase("dS_before", "The gradient of the state ahead of a chunk.", first)
        constants = ["H", *self.heads(), "K", "BLOCK_K", "V", "COLUMNS", "C", "PACKED", "SEGMENT"]
        opening = open_lines([*self.loaded, *self.stored])
        for base in (*states, *scores):
            part = f"{base} + block.to(tl.int64) * total * H * {'C' if base in scores else 'K'}"
            opening = [line.replace(f"tokens({base},", f"tokens({part},") for line in opening]
        text = "\n".join(self.out)
        for name, pairs in (("j_J1", "j_J1, c_1C"), ("c_C1", "c_C1, j_1J")):
            if name in text:
                opening.insert(0, f"{pairs} = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]")
        made = [tile.rsplit("_", 1)[0] for tile in self.stored]
        lines, functions = in_functions(self.out, self.phases, ["dS_VK"])
        return View(self.names(), made, constants, opening, lines, states, scores, functions)

    def score_gradients(self) -> list[str]:
        """dP = dz y^T, which `walk_again` needs for every block of key channels."""
        if shares_squares(self.kind):
            return self.squares_of_gradients()
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

    def squares_of_gradients(self) -> list[str]:
        """The same of scores that share squares: what is above the diagonal is made as y dz^T."""
        first = len(self.out)
        for square, operand in (("dq_scores", "do"), ("dr_scores", "dE")):
            for step in self.steps:
                if step.operation == "pair" and step.operands[0].base == operand:
                    dz, y = self.narrow(step.operands[0]), self.load(f"{step.operands[1].base}_VC")
                    rows, columns = (y, dz) if step.result[1:] in ABOVE else (dz, y)
                    axes = "JC" if rows == y else "CJ"
                    self.put(f"{step.result}_{axes}", f"dot(tl.trans({rows}), {columns})", step)
            self.out += square_of_gradients(self.kind, square)
            self.stored[f"{square}_JC"] = None  # a row of memory is a token that reads
            self.out.append(f"{square}_tiles.store([start, 0], {square}_CJ.to({square}.dtype.element_ty))")
        self.phase("score_gradients", "What scores receive, in squares as the scores themselves.", first)
        return ["dq_scores", "dr_scores"]

    def values(self) -> None:
        """dv and dU = P^T dz + x dS, then dE = X^T dU."""
        steps = self.steps
        if shares_squares(self.kind):
            # Masks of scores take registers: dS is read before them, and one sum is open at a time.
            place = {"read": 0, "apply": 1, "solve": 2}
            steps = tuple(sorted(steps, key=lambda step: (step.result == "dv", place.get(step.operation, 0))))
        for step in steps:
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
