"""The lines of `walk_again`, which carries S once more: gradients of the rows that read, and of the decay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.triton_functions import Function, Phase, in_functions
from archc.tiles.triton_gradients import Gradients, View, name_of, plus, scaled, times
from archc.tiles.triton_lines import Lines, load_line
from archc.tiles.triton_normaliser import ReverseNormaliser, vector_update, walked_again
from archc.tiles.triton_source import INPUTS

# What decays and numbers of tokens receive from pairs.
SUMS = ("mine_C", "near_C", "reads_before_C")


class Again(Gradients):
    """The kernel that carries S once more: gradients of the rows that read, and of the decay.

    A program has a block of key channels and all value columns, so that rows need no sum over blocks. What is a sum
    over K in a number a token is a part of it here, and the parts are added up afterwards; what `walk_back` has found
    counts in the first block.
    several: whether `walk_back` had several blocks of value columns; their parts of rows are added up here.
    """

    def __init__(self, kind: RecurrenceKind, program: TileProgram, several: bool = False) -> None:
        super().__init__(kind, program, "walk_again")
        self.several = several
        self.updating = False
        self.met = [step for step in self.steps if step.operation == "pair"]
        self.pairs = {}  # they are all there before the first group
        self.texts: dict[str, str] = {}  # of numbers that are stored as they are made
        self.together: list[tuple[int, list[Step]]] = []  # pairs, and the group that begins with their sums
        self.outside: dict[str, Step] = {}  # pairs whose sign and scale are left for where they are applied

    def view(self) -> View:
        """The kernel's lines, after those that sum up pairs."""
        view = super().view()
        sums = [self.sums(met) for _, met in self.together]
        given = dict.fromkeys(argument for function in sums for argument in function.arguments)
        lines = list(view.lines)
        for (group, _), function in reversed(list(zip(self.together, sums, strict=True))):
            lines.insert(self.starts[group], function.call)
        outlined = list[Function]()
        if self.kind.erase == "pair":
            sums = [_for_any(sums[0])]
            lines, outlined = in_functions(lines, self.phases(), view.update)
        names = [argument.removesuffix("_part_tiles") for argument in given if "_tiles" in argument]
        parts = [
            f"{name}_part_tiles = tokens({name}, end, h, H, {self.heads(name)}, V, C, PART_V)"
            for name in names
        ]
        return replace(
            view,
            lines=lines,
            opening=[*view.opening, *parts],
            functions=[*sums, *view.functions, *outlined],
        )

    def phases(self) -> list[Phase]:
        """Of an erase of two rows what comes through o, and what comes through E."""
        first, second = (self.starts[group] for group, _ in self.together)
        o = "What q receives, and rows that write as far as they come through dS and o."
        E = "What r receives, and rows that write in the end."
        return [
            Phase("output_gradients", o, first, second + 1),
            Phase("erase_gradients", E, second + 1, self.starts[-1] + 2),
        ]

    def sums(self, met: list[Step]) -> Function:
        """dP_ij = dz_i . y_j of these pairs, a few value columns at a time.

        It stays a loop: unrolled, the places of all tiles in shared memory would fill the registers, and warps would
        make each product twice.
        """
        targets = [f"{step.result}_CJ" for step in met]
        lines = [f"{target} = tl.zeros([C, C], tl.float32)" for target in targets]
        lines.append(
            "# Unrolled, places in shared memory would fill the registers, and warps make products twice."
        )
        lines.append("for column in range(0, V, PART_V):")
        rows = dict.fromkeys(row.base for step in met for row in step.operands)
        lines += [f"    {name}_CV = {name}_part_tiles.load([start, column])" for name in rows]
        for step, target in zip(met, targets, strict=True):
            dz, y = step.operands
            lines.append(f"    {target} += dot({dz.base}_CV, tl.trans({y.base}_CV))  # {step.number}")
        return Function(
            "score_gradients",
            [*(f"{name}_part_tiles" for name in rows), "start", "V", "PART_V", "C"],
            "What scores receive, a few value columns at a time: `dP_ij = dz_i . y_j` of all pairs of tokens.",
            lines,
            targets,
        )

    def numbered(self, step: Step) -> list[str]:
        """Pairs that have decays or numbers between them are a function: all of it stands at the first one."""
        if step not in self.met or not (self.decayed_rows or self.scalar):
            return super().numbered(step)
        met = next(met for _, met in self.together if step in met)
        if step is not met[0]:
            return []
        self.functions.append(self.met_pairs(met))
        return [self.functions[-1].call]

    def met_pairs(self, met: list[Step]) -> Function:
        """The function of these pairs. What belongs to pairs alone, as the decays between tokens, is made in it."""
        given = dict.fromkeys(f"{step.result}_CJ" for step in met)
        before = [name for name in SUMS if name in self.made]
        lines: list[str] = []
        made: set[str] = set()

        def place(line: str) -> None:
            for name in re.findall(r"\w+", line):
                if name in self.loaded or name in ("G_C", "share_C", "scale") or "_again_" in name:
                    given.setdefault(name)
                elif name in self.factors and name not in made:
                    made.add(name)
                    place(f"{name} = {self.factors[name]}")
            lines.append(line)

        for step in met:
            for line in super().numbered(step):
                place(line)
        text = " ".join(lines)
        given |= dict.fromkeys(name for name in before if name in text)
        row = next(name for name in given if name.endswith("_CK"))
        tokens = f"tl.arange(0, {row}.shape[0])"
        opening = [
            f"c_C1, j_1J = {tokens}[:, None], {tokens}[None, :]",
            f"dtype: tl.constexpr = {row}.dtype",
        ]
        receivers = [self.scalar.removesuffix("_C")] if self.scalar else []
        receivers += ["the decays between tokens"] if self.decayed_rows else []
        says = f"From scores to the products of their rows; what {' and '.join(receivers)} receive"
        results = [*(f"{step.result}_CJ" for step in met), *(name for name in SUMS if name in text)]
        reader = self.scores_of[met[0].result[1:]].operands[0].base
        name = "pair_gradients" if len(self.together) == 1 and met == self.met else f"{reader}_pair_gradients"
        return Function(name, list(given), f"{says}.", [*opening, *lines], results)

    def groups(self) -> Iterator[tuple[list[Step], list[str]]]:
        """Pairs, narrowed; one read after the other, rows that write as well last: they are not finished before."""
        if self.decayed_rows:
            self.ahead.append(self.load("decay_C"))
        if self.kind.erase == "pair":
            yield from self.two_rows()
            return
        rows = dict.fromkeys(row.base for P in self.scores_of.values() for row in P.operands)
        self.ahead += [self.load(name) for name in (self.scalar, *(f"{name}_CK" for name in rows)) if name]
        self.together.append((0, self.met))
        yield self.met, []
        results = list(dict.fromkeys(step.result for step in self.steps if self.reads(step)))
        bases = {result: result.removeprefix("d").removesuffix("_read") for result in results}
        for result in sorted(results, key=lambda result: self.both(bases[result])):
            rows_of = [
                step
                for step in self.steps
                if step.result == result and step.operation in ("project", "apply")
            ]
            pairs = [step.operands[0].base for step in rows_of if step.operation == "apply"]
            within = [
                step
                for step in self.steps
                if step.transposed
                and step.operands[0].base in pairs
                and self.both(self.scores_of[step.operands[0].base[1:]].operands[1].base)
            ]
            if self.both(bases[result]):
                last = [
                    step
                    for step in self.steps
                    if step.operation == "combine" and step.operands[0].base == result
                ]
                yield [*rows_of, *within, *last], [f"{last[0].result if last else result}_CK"]
            else:
                yield rows_of, [f"{result}_CK"]
                yield within, []
        yield from self.numbers()

    def two_rows(self) -> Iterator[tuple[list[Step], list[str]]]:
        """Of an erase of two rows first what comes through o, then what comes through E: there are registers for two
        scores at once. Both give to the rows that write."""
        if self.decayed_rows:
            self.ahead.append(self.factor("G_C", "tl.cumsum(decay_C, 0)"))
        yield [], []
        for dz in ("do", "dE"):
            met = [step for step in self.met if step.operands[0].base == dz]
            self.together.append((len(self.starts), met))
            yield met, []
            pairs = {step.result for step in met}
            within = [
                step for step in self.steps if step.operation == "apply" and step.operands[0].base in pairs
            ]
            read = next(step for step in self.steps if self.reads(step) and step.operands[0].base == dz)
            yield [read, *(step for step in within if not step.transposed)], [f"{read.result}_CK"]
            for x, y in self.writes.items():
                through = [step for step in self.steps if step.operation == "project" and dz == "do"]
                through = [step for step in through if step.operands[0].base == y]
                rows = [step for step in within if step.transposed and step.result == f"d{x}"]
                yield [*through, *rows], [f"d{x}_CK"] if dz == "dE" else []
        yield from self.numbers()

    def numbers(self) -> Iterator[tuple[list[Step], list[str]]]:
        """What a token has one number of."""
        numbers = [step for step in self.steps if step.result in ("ddecay", "dbeta", "dweight")]
        yield numbers, [f"{step.result}_C" for step in numbers]

    def whole(self, result: str) -> str:
        """The gradient of rows that a part of it is added to."""
        return result.removesuffix("_write").removesuffix("_read")

    def once(self, tile: str) -> str:
        """A tile that is used once, read where it is."""
        self.load(tile)
        return self.take_in(tile).partition(" = ")[2]

    def value(self, row: Row) -> str:
        tile = self.once(f"{row.base}_CV")
        return f"tl.trans({tile})" if self.updating else tile

    def row(self, row: Row) -> tuple[str, str]:
        """A row that writes; what it is multiplied with is one line."""
        if not row.exponent or not row.scalar:
            return super().row(row)
        self.end()
        factor = f"{self.gate(row.scalar)} * tl.exp(G_end - G_C)"
        return self.load(f"{row.base}_CK"), self.factor(f"{row.scalar}_out_C", factor)

    def normaliser(self) -> ReverseNormaliser:
        """The vector, carried once more."""
        return walked_again(self) if self.kind.beside else ReverseNormaliser()

    def scale(self, dz: Row, axis: str = "") -> str:
        """The scale, which stands outside of pairs; under a normaliser each token has its own, inside of them."""
        return "" if self.kind.beside else super().scale(dz, axis)

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

    def heads(self, name: str) -> str:
        return f"{name}_heads" if name in INPUTS else "H"

    def open(self, tile: str) -> str:
        name, axes = tile.rsplit("_", 1)
        if axes == "C":
            return ""
        if self.several and axes == "CK" and name not in INPUTS and tile in self.loaded:
            return f"{name}_tiles = by_block({name}, BLOCKS, total, end, h, H, K, C, CHANNELS)"
        width = "V, C, BLOCK_V" if axes == "CV" else "K, C, CHANNELS"
        return f"{name}_tiles = tokens({name}, end, h, H, {self.heads(name)}, {width})"

    def take_in(self, tile: str) -> str:
        name, axes = tile.rsplit("_", 1)
        if axes == "C" and name not in INPUTS:
            first = " & (channel == 0)" if name == "written" else ""
            return f"{tile} = scalars({name}, start, inside_C{first}, h, H, H)"
        return f"{tile} = {name}_tiles.load([start, 0])" if axes == "CV" else load_line(tile, blocked=True)

    def put_out(self, tile: str) -> str:
        self.stored.append(tile)
        name, axes = tile.rsplit("_", 1)
        if axes == "C":
            return f"put_scalars({name} + block, {self.texts.get(tile, tile)}, start, inside_C, h, H)"
        return f"{name}_tiles.store([start, channel], {tile}.to({name}.dtype.element_ty))"

    def twin(self, tile: str) -> str:
        """The tile once more, from a descriptor that does not look the same: used as both operands of a product, and
        in others, one tile breaks Triton 3.7."""
        name = name_of(tile)
        again = (
            self.open(tile)
            .replace(f"{name}_tiles", f"{name}_again_tiles")
            .replace("end,", "tl.maximum(end, 1),")
        )
        self.twins.append(f"{again}  # for products with itself")
        return self.factor(f"{name}_again_CK", f"{name}_again_tiles.load([start, channel])")

    # Steps.

    def between(self, P: Step) -> str:
        """`e^(G_i - G_j)` for the pairs of a score."""
        self.load("decay_C")
        self.factor("G_C", "tl.cumsum(decay_C, 0)")
        if P.operands[0].exponent == "<":
            seen, above, name = "j_1J < c_C1", "(G_C - decay_C)", "between_before_CJ"
        else:
            seen, above, name = "j_1J <= c_C1", "G_C", "between_CJ"
        exponents = f"tl.where({seen}, {above}[:, None] - G_C[None, :], -float('inf'))"
        found = self.factor(name, f"tl.exp({exponents})")
        return f"tl.where(j_1J < c_C1, {found}, 0.0)" if (name, P.mask) == ("between_CJ", "strict") else found

    def _pair(self, step: Step) -> Iterator[str]:
        """Of dP what pairs see of each other; its product with P is what a decay between i and j receives."""
        dz = step.operands[0]
        P, target = self.scores_of[step.result[1:]], f"{step.result}_CJ"
        self.outside[step.result] = step
        if self.kind.beside:
            yield f"{target} = {target} * share_C[:, None] + {self.divided()}[:, None]"
        if self.decayed_rows:
            yield f"{target} *= {self.between(P)}"
        else:
            yield f"{target} = tl.where(j_1J {'<' if P.mask == 'strict' else '<='} c_C1, {target}, 0.0)"
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
                sign = "-=" if "near_C" in self.made else "= -"
                self.made.add("near_C")
                yield f"near_C {sign} tl.sum(met_CJ, 0)".replace("- ", "-")
            else:
                yield self.add("near_C", "tl.sum(met_CJ, 1) - tl.sum(met_CJ, 0)")
        yield f"{target} = {f'({target} * {scalar})' if scalar else target}.to(dtype)"

    def _project(self, step: Step) -> Iterator[str]:
        """dx = dz S^T for rows that read; its product with x is what the decay up to the token receives."""
        dz, S = step.operands
        if S.base != "S":
            yield from self.through_state(dz)
            return
        factor, target = self.decay_of(step.into), f"{self.whole(step.result)}_CK"
        first = target not in self.made
        rows = target if first else "read_CK"  # without what pairs have given
        sign = "-" if step.sign < 0 else ""
        product = f"dot({self.value(dz)}, S_VK.to(dtype))"
        scale = times(super().scale(dz), factor)
        text = scaled(product, scale, "[:, None]") if factor or self.kind.beside else times(product, scale)
        if self.kind.beside:
            text += f" + ({times(self.divided(), factor)})[:, None] * n_K[None, :]"
        yield f"{rows} = {sign}{text}"
        if not first:
            yield f"{target} += {rows}"
        self.made.add(target)
        if factor:
            x = self.load(f"{step.result.removeprefix('d').removesuffix('_read')}_CK")
            yield self.add("seen_before_C" if step.into == "<" else "seen_C", f"tl.sum({x} * {rows}, 1)")

    def through_state(self, y: Row) -> Iterator[str]:
        """What rows that write have received through dS; its product with them is what decays behind it receive."""
        x = next(x for x, written in self.writes.items() if written == y.base)
        target, tile = f"d{x}_CK", f"d{x}_write_CK"
        if self.several:
            self.load(tile)
            yield f"{target} = tl.zeros([C, CHANNELS], tl.float32)"
            yield from self.parts_of(f"d{x}_write", target)
        else:
            yield f"{target} = {self.once(tile)}.to(tl.float32)"
        self.made.add(target)
        if self.decayed_rows:
            yield self.add("written_C", f"tl.sum({self.load(f'{x}_CK')} * {target}, 1)")

    def parts_of(self, name: str, target: str, scalar: str = "") -> Iterator[str]:
        """Add up what each block of value columns has given."""
        tile = f"tl.reshape({name}_tiles.load([part, start, channel]), [C, CHANNELS])"
        yield "for part in tl.static_range(BLOCKS):"
        yield f"    {target} += {scaled(tile, scalar, '[:, None]')}"

    def _apply(self, step: Step) -> Iterator[str]:
        """dx += dP y, and dy += dP^T x for rows that read as well."""
        P, y = step.operands
        if P.base in self.scores_of:
            return
        scores = f"tl.trans({P.base}_CJ)" if step.transposed else f"{P.base}_CJ"
        target = self.whole(step.result)
        product = f"dot({scores}, {self.load(f'{y.base}_CK')})"
        yield self.give(f"{target}_CK", self.outside[P.base], product)

    def _gather(self, step: Step) -> Iterator[str]:
        """Pairs give to the decays between them, reads to those before, writes to those behind, the state to all."""
        seen = [name for name in ("seen_C", "seen_before_C") if name in self.made]
        near = [name for name in ("seen_C", "near_C") if name in self.made]
        reads = [name for name in ("seen_before_C", "reads_before_C") if name in self.made]
        self.end()
        lines = [
            f"anchor = tl.where(tl.exp(G_end) > 0.0, anchor - tl.sum({plus(*seen)}), 0.0)",
            f"ddecay_C = tl.cumsum({plus(*near)}, 0, reverse=True) + anchor",
            *([f"ddecay_C += after({plus(*reads)})"] if reads else []),
            "ddecay_C += earlier(written_C)",
            "anchor += tl.sum(written_C)",
        ]
        given = dict.fromkeys(("anchor", "G_end", *seen, *near, *reads, "written_C"))
        says = "What the log decays of a chunk receive, and anchor, `<S, dS>`, behind it."
        function = Function("decay_gradients", list(given), says, lines, ["ddecay_C", "anchor"])
        self.functions.append(function)
        written = "written_C" if "written_C" in self.made else self.load("written_C")
        written = times(written, self.number(self.scalar))
        yield replace(function, arguments=[*list(given)[:-1], written]).call

    def _contract(self, step: Step) -> Iterator[str]:
        if step.result in ("dbeta", "dweight"):
            self.texts[f"{step.result}_C"] = f"{self.load('written_C')} + mine_C"
        yield from ()

    def _combine(self, step: Step) -> Iterator[str]:
        read, write = step.operands
        tile, scalar = self.once(f"{write.base}_CK"), self.number(self.scalar)
        if self.several:
            yield from self.parts_of(write.base, f"{self.whole(read.base)}_CK", scalar)
        else:
            yield self.add(f"{self.whole(read.base)}_CK", scaled(tile, scalar, "[:, None]"))

    def _update(self, step: Step) -> Iterator[str]:
        update = next(step for step in self.program.steps if step.operation == "update")
        self.updating = True
        yield from Lines._update(self, update)
        self.updating = False
        if self.kind.beside:
            yield vector_update(self, update)

    _read = _solve = Gradients._nothing


def _for_any(sums: Function) -> Function:
    """The function that sums up what scores of q receive, for those of any rows that read."""
    lines = [re.sub(r"\bdo_", "dz_", re.sub(r"\bdq", "dx", line.partition("  # ")[0])) for line in sums.lines]
    given = [argument.replace("do_", "dz_") for argument in sums.arguments]
    return replace(
        sums, arguments=given, lines=lines, results=[name.replace("dq", "dx") for name in sums.results]
    )
