"""Print the reverse of a tile program as two Triton kernels: one walks back with dS, one forth again with S.

`walk_back` carries dS from the end of a sequence to its start and makes all gradients of what writes into the state:
of values, and of the rows that they are written with. It needs no states. Where a segment of chunks starts it writes
dS. `walk_again` carries the state once more, from the one that the forward kept at the start of its segment, so
segments run beside each other; it makes the gradients of what reads the state.

A decay's gradient is the sum over all that it reaches: pairs of tokens of a chunk (`met`, score times gradient of the
score), reads of the state, writes into it, and e^G_end <S, dS_next>. The last is known exactly where a segment starts,
and is carried from there: <S, dS> less what the chunk reads from S is e^G_end <S, dS_next>; with what it writes it is
<S_next, dS_next>. Where nothing is left of S it is zero, not a difference. Pairs that no decay touches are left out of
`met`, so nothing of their size has to cancel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from archc.templates import environment
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.reverse import reverse
from archc.tiles.triton_lines import Lines
from archc.tiles.triton_normaliser import (
    ReverseNormaliser,
    back_normaliser,
    divisor,
    slope_of,
    vector_update,
    walked_again,
)
from archc.tiles.triton_source import INPUTS, load_line
from archc.tiles.views import kernel_arguments, public_facts


@dataclass(frozen=True, slots=True)
class ReverseLaunch:
    """How the two kernels are cut: value columns of a program; warps and stages of each.

    channels: key channels of a program of `walk_again`, which then has all value columns; 0 to cut it as `walk_back`.
    """

    columns: int
    back: tuple[int, int]
    again: tuple[int, int]
    channels: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """What the template shows of one kernel.

    loaded, made: tensors that it reads and that it writes. opening: their descriptors. lines: the kernel's steps.
    update: how its state goes on. normaliser: what a vector beside the state adds.
    """

    loaded: list[str]
    made: list[str]
    opening: list[str]
    lines: list[str]
    update: list[str]
    normaliser: ReverseNormaliser


# Axes of what the kernels make: "CV" values, "CK" rows, "C" a number a token. All but values are sums over a block of
# value columns.
_AXES = {"dv": "CV", "dE": "CV", "written": "C", "dbeta": "C", "dweight": "C", "ddecay": "C", "dz": "C"}


def reverse_source(kind: RecurrenceKind, launch: ReverseLaunch) -> str:
    """The text of `walk_back`, `walk_again` and their launcher `chunk_backward`, for the module of the forward kernels.

    `chunk_backward` has the arguments and results of that of the torch form, with the states that the forward kernels
    keep. Raises ValueError for a class without these kernels.
    """
    core = kind.core()
    if form_of(kind).form != "chunk" or core.decay not in ("none", "head"):
        raise ValueError(f"no reverse kernels for a decay of the class {core.decay}")
    program = forward(kind, weighted=kind.beside and kind.normalize == "max")
    back = _Back(kind, program).view()
    again = (_AgainByKeys if launch.channels else _Again)(kind, program).view()
    cut = ["CHANNELS", "V", "BLOCK_V"] if launch.channels else ["BLOCK_K", "V", "COLUMNS"]
    found = kernel_arguments(kind)
    facts = public_facts(kind, found)
    inputs = [argument.name for argument in found]
    made = [*back.made, *again.made]
    kept = [name for name in ("U", "X") if name in program.axes]
    view = {
        "core": core,
        "launch": launch,
        "kernels": {"walk_back": back, "walk_again": again},
        "by_keys": launch.channels > 0,
        "constants": {
            "walk_back": _constants(inputs, back, ["K", "BLOCK_K", "V", "COLUMNS"]),
            "walk_again": _constants(inputs, again, ["K", *cut]),
        },
        "again_made": again.made,
        "summed_first": [name for name in back.made if name in again.loaded and name != "dE"],
        "axes": {name: _AXES.get(name, "CK") for name in made},
        "inputs": [name for name in inputs if name != "floor"],
        "beside": kind.beside,
        "kept": kept,
        "typed": facts["typed"],
        "typed_kept": "".join(f"{name}: Tensor, " for name in kept),
        "given": _given,
        "short": facts["short"],
        "heads": facts["heads"],
        "contiguous": ", ".join(f"{name}.contiguous()" for name in ("do", *inputs)),
        "gradient": {name: "dE" if name == "v" and "dv" not in made else f"d{name}" for name in inputs},
    }
    return environment().get_template("recurrence/kernels_reverse.py.jinja").render(view)


def _constants(inputs: list[str], view: View, sizes: list[str]) -> list[str]:
    """The compile-time arguments of a kernel."""
    heads = [f"{name}_heads" for name in inputs if name in view.loaded]
    return ["H", *heads, *sizes, "C", "PACKED", "SEGMENT"]


def _given(name: str) -> str:
    """The value of a compile-time argument at the launch."""
    text = {"C": "CHUNK", "COLUMNS": "BACK_COLUMNS", "PACKED": "cu_seqlens is not None"}
    text["CHANNELS"] = "min(AGAIN_CHANNELS, BLOCK_K)"
    return f"{name.removesuffix('_heads')}.shape[2]" if name.endswith("_heads") else text.get(name, name)


def _name(tile: str) -> str:
    """The tensor that a tile belongs to."""
    return tile.rsplit("_", 1)[0]


class _Gradients(Lines):
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
        self.ahead: list[str] = []  # tiles and factors that come before the first step of the next group
        if kind.beside:
            self.load("z_C")
            self.factor("share_C", f"tl.where(inside_C, scale / {divisor(kind, self)}, 0.0)")

    def view(self) -> View:
        """The kernel's lines, each with the number of the step that it undoes."""
        lines: list[str] = []
        for steps, stores in self.groups():
            for name in self.ahead:
                self.need(lines, name)
            for step in steps:
                self.place(lines, self.numbered(step))
            self.place(lines, [self.put_out(tile) for tile in stores])
        update = next(step for step in self.steps if step.operation == "update")
        self.placed -= self.read_again()
        last: list[str] = []
        self.place(last, self.numbered(update))
        opening = [self.open(tile) for tile in (*self.loaded, *self.stored)]
        names = list(dict.fromkeys(_name(tile) for tile in self.loaded))
        made = [_name(tile) for tile in self.stored]
        return View(names, made, [*filter(None, opening), *self.twins], lines, last, self.normaliser())

    def read_again(self) -> set[str]:
        """Tiles that the state's update reads again, rather than holding them until then."""
        return set()

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
        return [f"{text[0]}  # {step.number}", *text[1:]] if text and step.number else text

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

    def gradient_of_write(self, base: str) -> str:
        """What rows receive as writers, in one tile with what comes through the state."""
        return f"d{base}_write" if self.both(base) else f"d{base}"

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
        scaled = _times(product, self.scale(dz, "[None, :]"))
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


def _times(*factors: str) -> str:
    return " * ".join(factor for factor in factors if factor)


def _plus(*terms: str) -> str:
    return " + ".join(term for term in terms if term)


def _scaled(text: str, factor: str, axis: str) -> str:
    """A tile times numbers a token, along its rows or columns."""
    if not factor:
        return text
    return f"{text} * {factor if ' ' not in factor else f'({factor})'}{axis}"


class _Back(_Gradients):
    """The kernel that carries dS: gradients of values and of the rows that they are written with."""

    def __init__(self, kind: RecurrenceKind, program: TileProgram) -> None:
        super().__init__(kind, program, "walk_back")

    def groups(self) -> Iterator[tuple[list[Step], list[str]]]:
        """First what comes through o, then values, then the rows that they are written with.

        Pairs are narrowed as soon as they are made, while nothing else is held. Within the chunk, rows that read as
        well get their part in the other kernel, which has the same pairs.
        """
        own = [step for step in self.steps if step.operation == "pair" and self.own(step)]
        for step in own:
            self.placed.add(f"{step.result}_JC")
        yield own, []
        early = [P for name, P in self.scores_of.items() if self.applied_to(name) == "do"]
        for P in early:
            self.placed.add(f"{P.result}_JC")
        yield early, []
        values = [step for step in self.steps if step.result in ("dv", "dU", "dE") and not self.reads(step)]
        state = [step for step in values if step.operation == "read"]
        yield state, ["written_C"] if self.decayed_rows or self.scalar else []
        made = {step.result for step in values}
        yield (
            [step for step in values if step not in state],
            [f"{name}_VC" for name in ("dv", "dE") if name in made],
        )
        for x, y in self.writes.items():
            through = [
                step for step in self.steps if step.operation == "project" and step.operands[0].base == y
            ]
            scores = {f"d{name}" for name, P in self.scores_of.items() if P.operands[1].base == x}
            within = [step for step in self.steps if step.transposed and step.operands[0].base in scores]
            yield [*through, *([] if self.both(x) else within)], [f"{self.gradient_of_write(x)}_KC"]
        yield [], ["dz_C"] if self.kind.beside else []

    def normaliser(self) -> ReverseNormaliser:
        """The gradient of the vector, carried as dS is."""
        return back_normaliser(self) if self.kind.beside else ReverseNormaliser()

    def divided(self) -> str:
        """What these columns give to a token's normaliser."""
        self.load("do_VC"), self.load("result_VC")
        slope = f" * {slope_of(self)}" if self.kind.normalize == "max" else ""
        return self.factor("dz_C", f"-tl.sum(do_VC.to(tl.float32) * result_VC, 0) * share_C{slope}")

    def put_out(self, tile: str) -> str:
        """Rows that only write are finished here: times what each is weighted with."""
        text = super().put_out(tile)
        if tile == "dk_KC" and self.scalar:
            return text.replace("dk_KC", f"dk_KC * {self.load(self.scalar)}[None, :]")
        return text

    def own(self, step: Step) -> bool:
        """Whether a pair makes gradients here, and is known from the start."""
        P = self.scores_of.get(step.result[1:])
        return P is not None and step.operands[0].base == "do" and not self.both(P.operands[1].base)

    def applied_to(self, scores: str) -> str:
        """The gradient that scores are applied to on the way back; empty for those that were only inverted."""
        found = (
            step.operands[1].base
            for step in self.steps
            if step.transposed and step.operands[0].base == scores
        )
        return next(found, "")

    def _pair(self, step: Step) -> Iterator[str]:
        """P again with all that multiplies it, or dP_ij = dz_i . y_j."""
        x, y = step.operands
        if step.result in self.scores_of:
            self.made.add(f"{step.result}_JC")
            product = f"dot({self.load(f'{y.base}_CK')}, tl.trans({self.load(f'{x.base}_CK')}))"
            scores = self.masked(step, product)
            scale = self.scale(Row(self.applied_to(step.result)), "[None, :]")
            if self.scalar and scale == "scale":
                scores = _scaled(scores, f"scale * {self.load(self.scalar)}", "[:, None]")
            else:
                scores = _times(_scaled(scores, self.number(self.scalar), "[:, None]"), scale)
            yield f"{step.result}_JC = ({scores}).to(dtype)"
            return
        product = f"dot(tl.trans({self.value(y)}), {self.value(x)}{self.narrow(x)})"
        product = self.from_output(x, ("-" if step.sign < 0 else "") + product)
        yield f"{step.result}_JC = ({self.masked(self.scores_of[step.result[1:]], product)}).to(dtype)"

    def _apply(self, step: Step) -> Iterator[str]:
        """dy = P^T dz, and dy = dP^T x for rows that write."""
        P, x = step.operands
        if not step.transposed:
            return
        if P.base in self.scores_of:
            product = f"dot({self.value(x)}{self.narrow(x)}, tl.trans({P.base}_JC))"
            yield self.add(f"{step.result}_VC", product)
        else:
            target = self.gradient_of_write(self.scores_of[P.base[1:]].operands[1].base)
            rows = self.load(f"{x.base}_CK")
            yield self.add(f"{target}_KC", f"dot(tl.trans({rows}), tl.trans({P.base}_JC))")

    def narrow(self, row: Row) -> str:
        return ".to(dtype)" if f"{row.base}_VC" in self.made and row.base != "dE" else ""

    def _read(self, step: Step) -> Iterator[str]:
        """dy += x dS; its product with y is what the decay from the token on receives."""
        x = step.operands[0]
        y = self.writes[x.base]
        decay = self.decay_of(x.exponent)
        product = _scaled(f"dot(dS_VK.to(dtype), tl.trans({self.load(f'{x.base}_CK')}))", decay, "[None, :]")
        yield self.add(f"{step.result}_VC", product)
        if not decay and not self.scalar:
            return
        yield self.add("written_C", f"tl.sum({self.load(f'{y}_VC')} * {step.result}_VC, 0)")
        if self.kind.beside:
            rows = f"tl.sum({self.load(f'{x.base}_CK')} * dn_K[None, :], 1)"
            yield self.add("written_C", _times(rows, decay))
        if self.scalar:
            yield f"{step.result}_VC *= {self.load(self.scalar)}[None, :]"

    def _project(self, step: Step) -> Iterator[str]:
        """dx = y dS^T for rows that write."""
        y, S = step.operands
        if S.base != "dS_next":
            return
        base = next(x for x, value in self.writes.items() if value == y.base)
        product = f"dot(tl.trans(dS_VK.to(dtype)), {self.load(f'{y.base}_VC')})"
        if self.kind.beside:
            product = f"({product} + dn_K[:, None])"
        text = _scaled(product, self.decay_of(step.into), "[None, :]")
        yield self.add(f"{self.gradient_of_write(base)}_KC", text)

    def _solve(self, step: Step) -> Iterator[str]:
        X, dU = step.operands
        self.made.add(f"{step.result}_VC")
        yield f"{step.result}_VC = dot({dU.base}_VC.to(dtype), tl.trans({self.load('X_JC')})).to(dtype)"

    def value(self, row: Row) -> str:
        return f"{row.base}_VC" if f"{row.base}_VC" in self.made else self.load(f"{row.base}_VC")

    def _update(self, step: Step) -> Iterator[str]:
        if self.decayed_rows:
            self.end()
            yield "dS_VK *= tl.exp(G_end)"
        for x, dz, sign in zip(step.operands[1::2], step.operands[2::2], step.signs, strict=True):
            factor = _times(self.scale(dz), self.decay_of(x.exponent))
            value = self.value(dz)
            if factor and factor != "scale":
                factor = f"({factor})" if " " in factor else factor
                value = f"({value} * {'-' if sign < 0 else ''}{factor}[None, :])"
            elif factor or sign < 0:
                value = f"({'-' if sign < 0 else ''}{_times(value, factor)})"
            yield f"dS_VK += dot({value}.to(dtype), {self.load(f'{x.base}_CK')})"
        if self.kind.beside:
            x = step.operands[1]
            factor = _times(self.divided(), self.decay_of(x.exponent))
            kept = " * tl.exp(G_end)" if self.decayed_rows else ""
            yield f"dn_K = dn_K{kept} + tl.sum({self.load(f'{x.base}_CK')} * ({factor})[:, None], 0)"

    _combine = _gather = _contract = _Gradients._nothing


class _Again(_Gradients):
    """The kernel that carries S once more: gradients of the rows that read, and of the decay."""

    def __init__(self, kind: RecurrenceKind, program: TileProgram) -> None:
        super().__init__(kind, program, "walk_again")

    def groups(self) -> Iterator[tuple[list[Step], list[str]]]:
        """One read after the other, with what its rows write within the chunk; then what is known when all are done."""
        for result in dict.fromkeys(step.result for step in self.steps if self.reads(step)):
            last = [
                step for step in self.steps if step.operation == "combine" and step.operands[0].base == result
            ]
            rows = [
                step
                for step in self.steps
                if step.result == result and step.operation in ("project", "apply")
            ]
            base = result.removeprefix("d").removesuffix("_read")
            scores = {f"d{name}" for name, P in self.scores_of.items() if P.operands[1].base == base}
            within = [step for step in self.steps if step.transposed and step.operands[0].base in scores]
            written = within if self.both(base) else []
            yield [*rows, *written, *last], [f"{last[0].result if last else result}_KC"]
        numbers = [step for step in self.steps if step.result in ("ddecay", "dbeta", "dweight")]
        yield numbers, [f"{step.result}_C" for step in numbers]

    def value(self, row: Row) -> str:
        return self.load(f"{row.base}_VC")

    def read_again(self) -> set[str]:
        return {f"{y}_VC" for y in self.writes.values()}

    def normaliser(self) -> ReverseNormaliser:
        """The vector, carried once more."""
        return walked_again(self) if self.kind.beside else ReverseNormaliser()

    def _pair(self, step: Step) -> Iterator[str]:
        """dP_ij = dz_i . y_j; its product with P is what a decay between i and j receives."""
        dz, y = step.operands
        P, target = self.scores_of[step.result[1:]], f"{step.result}_JC"
        product = f"dot(tl.trans({self.value(y)}), {self.value(dz)})"
        product = self.from_output(dz, ("-" if step.sign < 0 else "") + product)
        yield f"{target} = {self.masked(P, product)}"
        if self.decayed_rows or self.scalar:
            left, right = (self.load(f"{row.base}_CK") for row in P.operands)
            name = "met_before_JC" if P.operands[0].exponent == "<" else "met_JC"
            left = self.twin(left) if left == right else left
            yield self.add(name, f"{target} * dot({right}, tl.trans({left}))")
        if self.scalar:
            yield f"{target} *= {self.load(self.scalar)}[:, None]"

    def twin(self, tile: str) -> str:
        """The tile once more, from a descriptor that does not look the same: used as both operands of a product, and
        in others, one tile breaks Triton 3.7."""
        name = _name(tile)
        again = (
            self.open(tile)
            .replace(f"{name}_tiles", f"{name}_again_tiles")
            .replace("end,", "tl.maximum(end, 1),")
        )
        self.twins.append(f"{again}  # Triton 3.7 fails on a product of a tile with itself")
        return f"{name}_again_tiles.load([start, 0])"

    def _project(self, step: Step) -> Iterator[str]:
        """dx = dz S^T for rows that read; its product with x is what the decay up to the token receives."""
        dz, S = step.operands
        if S.base != "S":
            return
        product = f"dot(tl.trans(S_VK.to(dtype)), {self.value(dz)})"
        scale = self.scale(dz)
        factor = self.decay_of(step.into)
        if factor or self.kind.beside:
            text = _scaled(product, _times(scale, factor), "[None, :]")
        else:
            text = _times(product, scale)
        if self.kind.beside:
            text += f" + ({_times(self.divided(), factor)})[None, :] * n_K[:, None]"
        yield self.add(f"{step.result}_KC", f"-{text}" if step.sign < 0 else text)
        if factor:
            x = step.result.removeprefix("d").removesuffix("_read")
            name = "seen_before_C" if step.into == "<" else "seen_C"
            yield self.add(name, f"tl.sum(tl.trans({self.load(f'{x}_CK')}) * {step.result}_KC, 0)")

    def _apply(self, step: Step) -> Iterator[str]:
        """dx += dP y, and dy += dP^T x for rows that read as well."""
        P, y = step.operands
        if P.base in self.scores_of:
            return
        scores = f"{P.base}_JC.to(dtype)"
        if step.transposed:
            scores = f"tl.trans({scores})"
        target = step.result.removesuffix("_write").removesuffix("_read")
        target += "_read" if step.result != target else ""
        yield self.add(f"{target}_KC", f"dot(tl.trans({self.load(f'{y.base}_CK')}), {scores})")

    def _gather(self, step: Step) -> Iterator[str]:
        """Pairs give to the decays between them, reads to those before, writes to those behind, the state to all."""
        seen = [name for name in ("seen_C", "seen_before_C") if name in self.made]
        self.end()
        left = f"anchor - tl.sum({' + '.join(seen)})"
        yield f"anchor = tl.where(tl.exp(G_end) > 0.0, {left}, 0.0)"
        for name, border, reads in (
            ("", "j_J1 < c_1C", "seen_C"),
            ("before_", "j_J1 + 1 < c_1C", "seen_before_C"),
        ):
            if f"met_{name}JC" not in self.made:
                continue
            met = _scaled(f"met_{name}JC", self.scalar, "[:, None]")
            yield f"pairs_{name}JC = tl.where({border}, {met}, 0.0)"
            read = _plus(reads if reads in seen else "", f"tl.sum(pairs_{name}JC, 0)")
            yield self.add("reads_before_C" if name else "reads_C", read)
            yield self.add("writes_C", f"tl.sum(pairs_{name}JC, 1)")
        if "reads_C" in self.made:
            yield "ddecay_C = tl.cumsum(reads_C - writes_C, 0, reverse=True) + anchor"
        else:
            yield "ddecay_C = anchor - tl.cumsum(writes_C, 0, reverse=True)"
        if "reads_before_C" in self.made:
            yield "ddecay_C += after(reads_before_C)"
        written = self.before("written_C")
        self.load("written_C")
        if self.scalar:
            written += f" * {self.before(self.scalar)}"
        yield f"ddecay_C += tl.cumsum({written}, 0)"
        yield f"anchor += tl.sum({_times('written_C', self.scalar)})"

    def before(self, number: str) -> str:
        """What the token before has: a sum over all earlier ones is then one of loaded numbers, not a difference."""
        name = _name(number)
        own = (name, f"{name}_heads") if name in INPUTS else (f"{name} + block", "H")
        return f"before({own[0]}, start, inside_C, h, H, {own[1]})"

    def _contract(self, step: Step) -> Iterator[str]:
        if step.result not in ("dbeta", "dweight"):
            return
        met = [f"tl.sum({name}, 1)" for name in ("met_JC", "met_before_JC") if name in self.made]
        yield f"{step.result}_C = {_plus(self.load('written_C'), *met)}"

    def _combine(self, step: Step) -> Iterator[str]:
        read, write = step.operands
        tile = f"tl.trans({self.load(f'{write.base}_CK')})"
        yield f"{step.result}_KC = {read.base}_KC + {_scaled(tile, self.number(self.scalar), '[None, :]')}"
        self.made.add(f"{step.result}_KC")

    def _update(self, step: Step) -> Iterator[str]:
        update = next(step for step in self.program.steps if step.operation == "update")
        yield from Lines._update(self, update)
        if self.kind.beside:
            yield vector_update(self, update)

    _read = _solve = _Gradients._nothing


class _AgainByKeys(_Again):
    """`walk_again` for a block of key channels and all value columns: less of S, and rows that need no sum over blocks.

    What is a sum over K in a number a token is a part of it here, and the parts are added up afterwards; what
    `walk_back` has found counts in the first block. Pairs are summed up and narrowed as soon as they are made, and
    what the next rows need as well is read again: the registers are full.
    """

    def __init__(self, kind: RecurrenceKind, program: TileProgram) -> None:
        super().__init__(kind, program)
        self.updating = False
        self.outside: dict[str, Step] = {}  # pairs whose sign and scale are left for where they are applied

    def groups(self) -> Iterator[tuple[list[Step], list[str]]]:
        """One read after the other, rows that write as well last: they are not finished before."""
        results = list(dict.fromkeys(step.result for step in self.steps if self.reads(step)))
        bases = {result: result.removeprefix("d").removesuffix("_read") for result in results}
        for number, result in enumerate(sorted(results, key=lambda result: self.both(bases[result]))):
            self.placed = {name for name in self.placed if name.endswith("_CK")}
            rows = [
                step
                for step in self.steps
                if step.result == result and step.operation in ("project", "apply")
            ]
            pairs = list(dict.fromkeys(step.operands[0].base for step in rows if step.operation == "apply"))
            within = [
                step
                for step in self.steps
                if step.transposed
                and step.operands[0].base in pairs
                and self.both(self.scores_of[step.operands[0].base[1:]].operands[1].base)
            ]
            made = [self.pairs[f"{name}_JC"] for name in pairs]
            self.ahead = self.of_first(made[0], rows) if number == 0 else []
            if self.both(bases[result]):
                last = [
                    step
                    for step in self.steps
                    if step.operation == "combine" and step.operands[0].base == result
                ]
                yield [*made, *rows, *within, *last], [f"{last[0].result if last else result}_CK"]
            else:
                yield [*made, *rows], [f"{result}_CK"]
                yield within, []
        numbers = [step for step in self.steps if step.result in ("ddecay", "dbeta")]
        yield numbers, [f"{step.result}_C" for step in numbers]

    def value(self, row: Row) -> str:
        tile = self.load(f"{row.base}_CV")
        return f"tl.trans({tile})" if self.updating else tile

    def read_again(self) -> set[str]:
        return {f"{y}_CV" for y in self.writes.values()}

    def of_first(self, pair: Step, rows: list[Step]) -> list[str]:
        """What the first rows need, all of it ahead: with loads between the products, fewer registers are left."""
        dz, y = pair.operands
        row, column = self.scores_of[pair.result[1:]].operands
        numbers = [self.load("decay_C")] if self.decayed_rows else []
        if self.scalar:
            numbers.append(self.load(self.scalar))
        factors = [self.decay_of(step.into) for step in rows if self.reads(step)]
        tiles = [self.load(f"{row.base}_CK"), self.load(f"{y.base}_CV"), self.load(f"{column.base}_CK")]
        return [self.load(f"{dz.base}_CV"), *numbers, *filter(None, factors), *tiles]

    def give(self, target: str, step: Step, text: str) -> str:
        """Add to what is there with the sign and the scale of a gradient.

        Both stay outside of products: a sum that goes on in the accumulator of the next product lies in a layout that
        needs twice the registers.
        """
        text = _times(self.scale(step.operands[0]), text)
        if step.sign > 0:
            return self.add(target, text)
        return f"{target} -= {text}" if target in self.made else self.add(target, f"-{text}")

    # Memory.

    def open(self, tile: str) -> str:
        name, axes = tile.rsplit("_", 1)
        if axes == "C":
            return ""
        heads = f"{name}_heads" if name in INPUTS else "H"
        width = "V, C, BLOCK_V" if axes == "CV" else "K, C, CHANNELS"
        return f"{name}_tiles = tokens({name}, end, h, H, {heads}, {width})"

    def take_in(self, tile: str) -> str:
        name, axes = tile.rsplit("_", 1)
        if axes == "C" and name not in INPUTS:
            return f"{tile} = scalars({name}, start, inside_C & (channel == 0), h, H, H)"
        return f"{tile} = {name}_tiles.load([start, 0])" if axes == "CV" else load_line(tile, blocked=True)

    def put_out(self, tile: str) -> str:
        self.stored.append(tile)
        name, axes = tile.rsplit("_", 1)
        if axes == "C":
            return f"put_scalars({name} + block, {tile}, start, inside_C, h, H)"
        return f"{name}_tiles.store([start, channel], {tile}.to({name}.dtype.element_ty))"

    def twin(self, tile: str) -> str:
        return super().twin(tile).replace("[start, 0]", "[start, channel]")

    def before(self, number: str) -> str:
        text = super().before(number)
        return text.replace(" + block, start, inside_C", ", start, inside_C & (channel == 0)")

    # Steps.

    def seen(self, P: Step) -> str:
        return f"j_1J {'<' if P.mask == 'strict' else '<='} c_C1"

    def between(self, P: Step) -> str:
        before = P.operands[0].exponent == "<"
        self.load("decay_C")
        self.factor("G_C", "tl.cumsum(decay_C, 0)")
        above = "(G_C - decay_C)" if before else "G_C"
        return f"tl.exp(tl.where({self.seen(P)}, {above}[:, None] - G_C[None, :], -float('inf')))"

    def _pair(self, step: Step) -> Iterator[str]:
        """dP_ij = dz_i . y_j; its product with P is what a decay between i and j receives."""
        dz, y = step.operands
        P, target = self.scores_of[step.result[1:]], f"{step.result}_CJ"
        self.outside[step.result] = step
        product = f"dot({self.value(dz)}, tl.trans({self.value(y)}))"
        yield f"{target} = {self.masked(P, product)}"
        scalar = f"{self.load(self.scalar)}[None, :]" if self.scalar else ""
        if self.decayed_rows or scalar:
            left, right = (self.load(f"{row.base}_CK") for row in P.operands)
            left = self.twin(left) if left == right else left
            met = _times(self.scale(dz), target, f"dot({left}, tl.trans({right}))")
            yield f"met_CJ = {'-' if step.sign < 0 else ''}{met}"
        if scalar:
            yield self.add("mine_C", "tl.sum(met_CJ, 0)")
        if self.decayed_rows:
            before = P.operands[0].exponent == "<"
            border = "j_1J + 1 < c_C1" if before else "j_1J < c_C1"
            yield f"met_CJ = tl.where({border}, {_times('met_CJ', scalar)}, 0.0)"
            if before:
                yield self.add("reads_before_C", "tl.sum(met_CJ, 1)")
            near = "" if before else "tl.sum(met_CJ, 1) "
            yield self.add("near_C", near + ("-" if before else "- ") + "tl.sum(met_CJ, 0)")
        yield f"{target} = {f'({target} * {scalar})' if scalar else target}.to(dtype)"

    def _project(self, step: Step) -> Iterator[str]:
        """dx = dz S^T for rows that read; its product with x is what the decay up to the token receives."""
        dz, S = step.operands
        if S.base != "S":
            return
        factor, target = self.decay_of(step.into), f"{step.result}_CK"
        first = target not in self.made
        rows = target if first else "read_CK"  # without what pairs have given
        sign = "-" if step.sign < 0 else ""
        product = f"dot({self.value(dz)}, S_VK.to(dtype))"
        scale = _times(self.scale(dz), factor)
        text = _scaled(product, scale, "[:, None]") if factor else _times(product, scale)
        yield f"{rows} = {sign}{text}"
        if not first:
            yield f"{target} += {rows}"
        self.made.add(target)
        if factor:
            x = self.load(f"{step.result.removeprefix('d').removesuffix('_read')}_CK")
            yield self.add("seen_before_C" if step.into == "<" else "seen_C", f"tl.sum({x} * {rows}, 1)")

    def _apply(self, step: Step) -> Iterator[str]:
        """dx += dP y, and dy += dP^T x for rows that read as well."""
        P, y = step.operands
        if P.base in self.scores_of:
            return
        scores = f"tl.trans({P.base}_CJ)" if step.transposed else f"{P.base}_CJ"
        target = step.result.removesuffix("_write").removesuffix("_read")
        target += "_read" if step.result != target else ""
        product = f"dot({scores}, {self.load(f'{y.base}_CK')})"
        yield self.give(f"{target}_CK", self.outside[P.base], product)

    def _gather(self, step: Step) -> Iterator[str]:
        """Pairs give to the decays between them, reads to those before, writes to those behind, the state to all."""
        seen = [name for name in ("seen_C", "seen_before_C") if name in self.made]
        self.end()
        yield f"anchor = tl.where(tl.exp(G_end) > 0.0, anchor - tl.sum({' + '.join(seen)}), 0.0)"
        near = _plus(*(name for name in ("seen_C", "near_C") if name in self.made))
        yield f"ddecay_C = tl.cumsum({near}, 0, reverse=True) + anchor"
        reads = _plus(*(name for name in ("seen_before_C", "reads_before_C") if name in self.made))
        if reads:
            yield f"ddecay_C += after({reads})"
        written = self.before("written_C")
        self.load("written_C")
        if self.scalar:
            written += f" * {self.before(self.scalar)}"
        yield f"ddecay_C += tl.cumsum({written}, 0)"
        yield f"anchor += tl.sum({_times('written_C', self.scalar)})"

    def _contract(self, step: Step) -> Iterator[str]:
        if step.result == "dbeta":
            yield f"dbeta_C = {self.load('written_C')} + mine_C"

    def _combine(self, step: Step) -> Iterator[str]:
        read, write = step.operands
        tile = self.load(f"{write.base}_CK")
        yield self.add(f"{read.base}_CK", _scaled(tile, self.number(self.scalar), "[:, None]"))
        yield f"{step.result}_CK = {read.base}_CK"

    def _update(self, step: Step) -> Iterator[str]:
        self.updating = True
        yield from super()._update(step)
        self.updating = False
