"""Print the reverse of a tile program as two Triton kernels: one walks back with dS, one forth again with S.

`walk_back` carries dS from the end of a sequence to its start and makes all gradients of what writes into the state:
of values, and of the rows that they are written with. It needs no states. Where a segment of chunks starts it writes
dS. `walk_again` carries the state once more, from the one that the forward kept at the start of its segment, so
segments run beside each other; it makes the gradients of what reads the state.

A decay's gradient is the sum over all that it reaches: pairs of tokens of a chunk (`met`, score times gradient of the
score), reads of the state, writes into it, and e^G_end <S, dS_next>. The last is known exactly where a segment starts, and is
carried from there: <S, dS> less what the chunk reads from S is e^G_end <S, dS_next>; with what it writes it is
<S_next, dS_next>. Pairs that no decay touches are left out of `met`, so nothing of their size has to cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from archc.data import data_folder
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.reverse import reverse
from archc.tiles.triton_lines import Lines
from archc.tiles.triton_source import INPUTS, _load as load_line
from archc.tiles.views import arguments, public_facts


@dataclass(frozen=True, slots=True)
class ReverseLaunch:
    """How the two kernels are cut: value columns of a program; warps and stages of each."""

    columns: int
    back: tuple[int, int]
    again: tuple[int, int]


@dataclass(frozen=True, slots=True)
class View:
    """What the template shows of one kernel.

    loaded, made: tensors that it reads and that it writes. opening: their descriptors. lines: the kernel's steps.
    update: how its state goes on.
    """

    loaded: list[str]
    made: list[str]
    opening: list[str]
    lines: list[str]
    update: list[str]


# Axes of what the kernels make: "CV" values, "CK" rows, "C" a number a token. All but values are sums over a block of
# value columns.
_AXES = {"dv": "CV", "dE": "CV", "written": "C", "within": "C", "dbeta": "C", "ddecay": "C"}


def reverse_source(kind: RecurrenceKind, launch: ReverseLaunch) -> str:
    """The text of `walk_back`, `walk_again` and their launcher `chunk_backward`, for the module of the forward kernels.

    `chunk_backward` has the arguments and results of that of the torch form, with the states that the forward kernels
    keep. Raises ValueError for a class without these kernels.
    """
    core = kind.core()
    if form_of(kind).form != "chunk" or core.decay not in ("none", "head"):
        raise ValueError(f"no reverse kernels for a decay of the class {core.decay}")
    environment = Environment(
        loader=FileSystemLoader(data_folder("templates")), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    program = forward(kind)
    back, again = _Back(kind, program).view(), _Again(kind, program).view()
    found = arguments(kind)
    facts = public_facts(kind, found)
    inputs = [argument.name for argument in found]
    made = [*back.made, *again.made]
    kept = [name for name in ("U", "X") if name in program.axes]
    view = {
        "core": core,
        "launch": launch,
        "kernels": {"walk_back": back, "walk_again": again},
        "constants": {
            name: _constants(inputs, view) for name, view in (("walk_back", back), ("walk_again", again))
        },
        "axes": {name: _AXES.get(name, "CK") for name in made},
        "inputs": inputs,
        "kept": kept,
        "typed": facts["typed"],
        "typed_kept": "".join(f"{name}: Tensor, " for name in kept),
        "given": _given,
        "short": facts["short"],
        "heads": facts["heads"],
        "contiguous": ", ".join(f"{name}.contiguous()" for name in ("do", *inputs)),
        "gradient": {name: "dE" if name == "v" and "dv" not in made else f"d{name}" for name in inputs},
    }
    return environment.get_template("recurrence/kernels_reverse.py.jinja").render(view)


def _constants(inputs: list[str], view: View) -> list[str]:
    """The compile-time arguments of a kernel."""
    heads = [f"{name}_heads" for name in inputs if name in view.loaded]
    return ["H", *heads, "K", "BLOCK_K", "V", "COLUMNS", "C", "PACKED", "SEGMENT"]


def _given(name: str) -> str:
    """The value of a compile-time argument at the launch."""
    text = {"C": "CHUNK", "COLUMNS": "BACK_COLUMNS", "PACKED": "cu_seqlens is not None"}
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

    def view(self) -> View:
        """The kernel's lines, each with the number of the step that it undoes."""
        lines: list[str] = []
        update: list[str] = []
        for step in [*self.ahead(), *reverse(self.program).steps]:
            text = list(getattr(self, f"_{step.operation}")(step))
            if text:
                numbered = [f"{text[0]}  # {step.number}" if step.number else text[0], *text[1:]]
                (update if step.operation == "update" else lines).extend(numbered)
        stores = [self.put_out(tile, value) for tile, value in self.stores()]
        loads = [self.take_in(tile) for tile in self.loaded]
        factors = [f"{name} = {text}" for name, text in self.factors.items()]
        names = list(dict.fromkeys(_name(tile) for tile in self.loaded))
        made = [_name(tile) for tile, _ in self.stores()]
        opening = [self.open(tile) for tile in (*self.loaded, *(tile for tile, _ in self.stores()))]
        return View(
            names, made, [line for line in opening if line], [*loads, *factors, *lines, *stores], update
        )

    def ahead(self) -> list[Step]:
        """Steps of the forward that come first."""
        return []

    # Names and factors.

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

    def masked(self, target: str, P: Step, product: str) -> list[str]:
        """A tile of pairs, with the decay between them or zero where they do not see each other."""
        if self.decayed_rows:
            return [f"{target} = {product} * {self.between(P)}"]
        return [f"{target} = tl.where({self.seen(P)}, {product}, 0.0)"]

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
        width, block = {"CK": ("K", "BLOCK_K"), "VC": ("V", "COLUMNS"), "JC": ("C", "C")}[axes]
        part = f"{name} + block * K" if axes == "CK" and name not in INPUTS else name
        return f"{name}_tiles = tokens({part}, end, h, H, {heads}, {width}, C, {block})"

    def take_in(self, tile: str) -> str:
        """The line that loads a tile."""
        name, axes = tile.rsplit("_", 1)
        if axes == "C" and name not in INPUTS:
            return f"{tile} = scalars({name} + block, start, inside_C, h, H, H)"
        return load_line(tile)

    def put_out(self, tile: str, value: str) -> str:
        """The line that stores a gradient, or what the other kernel needs."""
        name, axes = tile.rsplit("_", 1)
        match axes:
            case "CK":
                return f"{name}_tiles.store([start, 0], {value}.to({name}.dtype.element_ty))"
            case "VC":
                return f"{name}_tiles.store([start, column], tl.trans({value}).to({name}.dtype.element_ty))"
            case _:
                return f"put_scalars({name} + block, {value}, start, inside_C, h, H)"

    def stores(self) -> list[tuple[str, str]]:
        """What is written once all steps are done: tile, value."""
        return []

    # Steps that a kernel leaves to the other one, or that the tiles here hold already: pairs that no decay touches.

    def _nothing(self, step: Step) -> Iterator[str]:
        yield from ()

    _cumulative = _extract = _scale = _add = _invert = _nothing


def _times(*factors: str) -> str:
    return " * ".join(factor for factor in factors if factor)


def _scaled(text: str, factor: str, axis: str) -> str:
    """A tile times numbers a token, along its rows or columns."""
    if not factor:
        return text
    return f"{text} * {factor if ' ' not in factor else f'({factor})'}{axis}"


class _Back(_Gradients):
    """The kernel that carries dS: gradients of values and of the rows that they are written with."""

    def __init__(self, kind: RecurrenceKind, program: TileProgram) -> None:
        super().__init__(kind, program, "walk_back")

    def ahead(self) -> list[Step]:
        """The scores; without a decay and a row scalar those of an inverse are not needed again."""
        applied = {
            row.base for step in self.program.steps if step.operation == "apply" for row in step.operands
        }
        needed = self.decayed_rows or bool(self.scalar)
        return [P for P in self.scores_of.values() if needed or P.result in applied]

    def _pair(self, step: Step) -> Iterator[str]:
        """P again, or dP_ij = dz_i . y_j, whose product with P is what a decay between i and j receives."""
        x, y = step.operands
        if step.result in self.scores_of:
            self.made.add(f"{step.result}_JC")
            product = f"dot({self.load(f'{y.base}_CK')}, tl.trans({self.load(f'{x.base}_CK')}))"
            yield from self.masked(f"{step.result}_JC", step, product)
            return
        P, target = self.scores_of[step.result[1:]], f"{step.result}_JC"
        product = f"dot(tl.trans({self.value(y)}), {self.value(x)}{'' if x.base == 'do' else '.to(dtype)'})"
        product = ("-" if step.sign < 0 else "") + product + (" * scale" if x.base == "do" else "")
        if not self.decayed_rows and not self.scalar:
            yield from self.masked(target, P, product)
            return
        yield f"{target} = {product}"
        name = "met_before_JC" if P.operands[0].exponent == "<" else "met_JC"
        yield self.add(name, f"{target} * {P.result}_JC")
        yield from self.masked(target, P, target)

    def _apply(self, step: Step) -> Iterator[str]:
        """dy = P^T dz, and dy = dP^T x for rows that write."""
        P, x = step.operands
        if not step.transposed:
            return
        if P.base in self.scores_of:
            scale = "scale" if x.base == "do" else ""
            if self.scalar:
                scale = _times(scale, self.load(self.scalar))
                scores = _scaled(f"{P.base}_JC", scale, "[:, None]")
            else:
                scores = _times(f"{P.base}_JC", scale)
            yield self.add(
                f"{step.result}_VC", f"dot({self.value(x)}{self.narrow(x)}, tl.trans({scores}).to(dtype))"
            )
        else:
            target = self.gradient_of_write(self.scores_of[P.base[1:]].operands[1].base)
            yield self.add(f"{target}_CK", f"dot({P.base}_JC.to(dtype), {self.load(f'{x.base}_CK')})")

    def narrow(self, row: Row) -> str:
        return ".to(dtype)" if f"{row.base}_VC" in self.made or row.base in self.made else ""

    def _read(self, step: Step) -> Iterator[str]:
        """dy += x dS; its product with y is what the decay from the token on receives."""
        x = step.operands[0]
        y = self.writes[x.base]
        decay = self.decay_of(x.exponent)
        product = _scaled(f"dot(dS_VK.to(dtype), tl.trans({self.load(f'{x.base}_CK')}))", decay, "[None, :]")
        if not decay and not self.scalar:
            yield self.add(f"{step.result}_VC", product)
            return
        yield f"{x.base}dS_VC = {product}"
        yield self.add("written_C", f"tl.sum({self.load(f'{y}_VC')} * {x.base}dS_VC, 0)")
        number = self.load(self.scalar) if self.scalar else ""
        yield self.add(f"{step.result}_VC", _scaled(f"{x.base}dS_VC", number, "[None, :]"))

    def _project(self, step: Step) -> Iterator[str]:
        """dx = y dS^T for rows that write."""
        y, S = step.operands
        if S.base != "dS_next":
            return
        base = next(x for x, value in self.writes.items() if value == y.base)
        product = f"dot(tl.trans({self.load(f'{y.base}_VC')}), dS_VK.to(dtype))"
        text = _scaled(product, self.decay_of(step.into), "[:, None]")
        yield self.add(f"{self.gradient_of_write(base)}_CK", text)

    def _solve(self, step: Step) -> Iterator[str]:
        X, dU = step.operands
        self.made.add(f"{step.result}_VC")
        yield f"{step.result}_VC = dot({dU.base}_VC.to(dtype), tl.trans({self.load('X_JC')}))"

    def value(self, row: Row) -> str:
        return f"{row.base}_VC" if f"{row.base}_VC" in self.made else self.load(f"{row.base}_VC")

    def _update(self, step: Step) -> Iterator[str]:
        if self.decayed_rows:
            self.end()
            yield "dS_VK *= tl.exp(G_end)"
        for x, dz, sign in zip(step.operands[1::2], step.operands[2::2], step.signs, strict=True):
            factor = _times("scale" if dz.base == "do" else "", self.decay_of(x.exponent))
            value = self.value(dz)
            if factor and factor != "scale":
                factor = f"({factor})" if " " in factor else factor
                value = f"({value} * {'-' if sign < 0 else ''}{factor}[None, :])"
            elif factor or sign < 0:
                value = f"({'-' if sign < 0 else ''}{_times(value, factor)})"
            yield f"dS_VK += dot({value}.to(dtype), {self.load(f'{x.base}_CK')})"

    def _gather(self, step: Step) -> Iterator[str]:
        """What pairs give to the decays between them, and writes to those after them, up to the end of the chunk."""
        number = _scaled("{}", self.scalar, "[:, None]")
        terms = []
        if "met_JC" in self.made:
            yield f"pairs_JC = tl.where(j_J1 < c_1C, {number.format('met_JC')}, 0.0)"
            terms.append("tl.cumsum(tl.sum(pairs_JC, 0) - tl.sum(pairs_JC, 1), 0, reverse=True)")
        if "met_before_JC" in self.made:
            yield f"before_JC = tl.where(j_J1 + 1 < c_1C, {number.format('met_before_JC')}, 0.0)"
            terms.append("after(tl.sum(before_JC, 0)) - tl.cumsum(tl.sum(before_JC, 1), 0, reverse=True)")
        yield f"within_C = {' + '.join(terms)}"

    def _contract(self, step: Step) -> Iterator[str]:
        if step.result != "dbeta":
            return
        met = [f"tl.sum({name}, 1)" for name in ("met_JC", "met_before_JC") if name in self.made]
        yield f"dbeta_C = {' + '.join(['written_C', *met])}"

    _combine = _Gradients._nothing

    def stores(self) -> list[tuple[str, str]]:
        tiles = [name for name in ("dv_VC", "dE_VC") if name in self.made]
        tiles += [f"{self.gradient_of_write(base)}_CK" for base in self.writes]
        tiles += ["dbeta_C"] if self.scalar else []
        pairs = [(tile, tile) for tile in tiles]
        if self.decayed_rows:
            pairs += [("within_C", "within_C"), ("written_C", _times("written_C", self.scalar))]
        return pairs


class _Again(_Gradients):
    """The kernel that carries S once more: gradients of the rows that read, and of the decay."""

    def __init__(self, kind: RecurrenceKind, program: TileProgram) -> None:
        super().__init__(kind, program, "walk_again")

    def value(self, row: Row) -> str:
        return self.load(f"{row.base}_VC")

    def _pair(self, step: Step) -> Iterator[str]:
        """dP_ij = dz_i . y_j, with the row scalar of y."""
        dz, y = step.operands
        P = self.scores_of[step.result[1:]]
        product = f"dot(tl.trans({self.value(y)}), {self.value(dz)})"
        product = ("-" if step.sign < 0 else "") + product + (" * scale" if dz.base == "do" else "")
        number = self.load(self.scalar) if self.scalar else ""
        yield from self.masked(f"{step.result}_JC", P, _scaled(product, number, "[:, None]"))

    def _project(self, step: Step) -> Iterator[str]:
        """dx = dz S^T for rows that read; its product with x is what the decay up to the token receives."""
        dz, S = step.operands
        if S.base != "S":
            return
        product = f"dot(tl.trans({self.value(dz)}), S_VK.to(dtype))"
        scale = "scale" if dz.base == "do" else ""
        factor = self.decay_of(step.into)
        text = _scaled(product, _times(scale, factor), "[:, None]") if factor else _times(product, scale)
        yield self.add(f"{step.result}_CK", f"-{text}" if step.sign < 0 else text)
        if factor:
            x = step.result.removeprefix("d").removesuffix("_read")
            name = "seen_before_C" if step.into == "<" else "seen_C"
            yield self.add(name, f"tl.sum({self.load(f'{x}_CK')} * {step.result}_CK, 1)")

    def _apply(self, step: Step) -> Iterator[str]:
        """dx += dP y."""
        P, y = step.operands
        if step.transposed or P.base in self.scores_of:
            return
        rows = self.load(f"{y.base}_CK")
        yield self.add(f"{step.result}_CK", f"dot(tl.trans({P.base}_JC).to(dtype), {rows})")

    def _gather(self, step: Step) -> Iterator[str]:
        seen = [name for name in ("seen_C", "seen_before_C") if name in self.made]
        yield f"anchor -= tl.sum({' + '.join(seen)})"
        terms = [self.load("within_C"), "anchor"]
        terms += ["tl.cumsum(seen_C, 0, reverse=True)"] if "seen_C" in seen else []
        terms += ["after(seen_before_C)"] if "seen_before_C" in seen else []
        yield f"ddecay_C = {' + '.join(terms)}"
        yield f"ddecay_C += until({self.load('written_C')})"
        yield "anchor += tl.sum(written_C)"

    def _combine(self, step: Step) -> Iterator[str]:
        read, write = step.operands
        tile = self.load(f"{write.base}_CK")
        yield f"{step.result}_CK = {read.base}_CK + {_scaled(tile, self.load(self.scalar) if self.scalar else '', '[:, None]')}"
        self.made.add(f"{step.result}_CK")

    def _update(self, step: Step) -> Iterator[str]:
        yield from Lines._update(
            self, next(step for step in self.program.steps if step.operation == "update")
        )

    _read = _solve = _contract = _Gradients._nothing

    def stores(self) -> list[tuple[str, str]]:
        tiles = [f"d{base}_CK" for base in ("q", "k", "r") if f"d{base}_CK" in self.made]
        return [(tile, tile) for tile in (*tiles, *(["ddecay_C"] if self.decayed_rows else []))]
