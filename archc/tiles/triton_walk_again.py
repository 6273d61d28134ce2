"""The lines of `walk_again`, which carries S once more: gradients of the rows that read, and of the decay."""

from __future__ import annotations

from collections.abc import Iterator

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.triton_gradients import Gradients, name_of, plus, scaled, times
from archc.tiles.triton_lines import Lines, load_line
from archc.tiles.triton_normaliser import ReverseNormaliser, vector_update, walked_again
from archc.tiles.triton_source import INPUTS


class Again(Gradients):
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
        name = name_of(tile)
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
            text = scaled(product, times(scale, factor), "[None, :]")
        else:
            text = times(product, scale)
        if self.kind.beside:
            text += f" + ({times(self.divided(), factor)})[None, :] * n_K[:, None]"
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
            met = scaled(f"met_{name}JC", self.scalar, "[:, None]")
            yield f"pairs_{name}JC = tl.where({border}, {met}, 0.0)"
            read = plus(reads if reads in seen else "", f"tl.sum(pairs_{name}JC, 0)")
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
        yield f"anchor += tl.sum({times('written_C', self.scalar)})"

    def before(self, number: str) -> str:
        """What the token before has: a sum over all earlier ones is then one of loaded numbers, not a difference."""
        name = name_of(number)
        own = (name, f"{name}_heads") if name in INPUTS else (f"{name} + block", "H")
        return f"before({own[0]}, start, inside_C, h, H, {own[1]})"

    def _contract(self, step: Step) -> Iterator[str]:
        if step.result not in ("dbeta", "dweight"):
            return
        met = [f"tl.sum({name}, 1)" for name in ("met_JC", "met_before_JC") if name in self.made]
        yield f"{step.result}_C = {plus(self.load('written_C'), *met)}"

    def _combine(self, step: Step) -> Iterator[str]:
        read, write = step.operands
        tile = f"tl.trans({self.load(f'{write.base}_CK')})"
        yield f"{step.result}_KC = {read.base}_KC + {scaled(tile, self.number(self.scalar), '[None, :]')}"
        self.made.add(f"{step.result}_KC")

    def _update(self, step: Step) -> Iterator[str]:
        update = next(step for step in self.program.steps if step.operation == "update")
        yield from Lines._update(self, update)
        if self.kind.beside:
            yield vector_update(self, update)

    _read = _solve = Gradients._nothing


class AgainByKeys(Again):
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
        text = times(self.scale(step.operands[0]), text)
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
            met = times(self.scale(dz), target, f"dot({left}, tl.trans({right}))")
            yield f"met_CJ = {'-' if step.sign < 0 else ''}{met}"
        if scalar:
            yield self.add("mine_C", "tl.sum(met_CJ, 0)")
        if self.decayed_rows:
            before = P.operands[0].exponent == "<"
            border = "j_1J + 1 < c_C1" if before else "j_1J < c_C1"
            yield f"met_CJ = tl.where({border}, {times('met_CJ', scalar)}, 0.0)"
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
        scale = times(self.scale(dz), factor)
        text = scaled(product, scale, "[:, None]") if factor else times(product, scale)
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
        near = plus(*(name for name in ("seen_C", "near_C") if name in self.made))
        yield f"ddecay_C = tl.cumsum({near}, 0, reverse=True) + anchor"
        reads = plus(*(name for name in ("seen_before_C", "reads_before_C") if name in self.made))
        if reads:
            yield f"ddecay_C += after({reads})"
        written = self.before("written_C")
        self.load("written_C")
        if self.scalar:
            written += f" * {self.before(self.scalar)}"
        yield f"ddecay_C += tl.cumsum({written}, 0)"
        yield f"anchor += tl.sum({times('written_C', self.scalar)})"

    def _contract(self, step: Step) -> Iterator[str]:
        if step.result == "dbeta":
            yield f"dbeta_C = {self.load('written_C')} + mine_C"

    def _combine(self, step: Step) -> Iterator[str]:
        read, write = step.operands
        tile = self.load(f"{write.base}_CK")
        yield self.add(f"{read.base}_CK", scaled(tile, self.number(self.scalar), "[:, None]"))
        yield f"{step.result}_CK = {read.base}_CK"

    def _update(self, step: Step) -> Iterator[str]:
        self.updating = True
        yield from super()._update(step)
        self.updating = False
