"""The lines of `walk_back`, which carries dS: gradients of values and of the rows that they are written with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.triton_functions import Phase, in_functions, outlined
from archc.tiles.triton_gradients import Gradients, View, scaled, times
from archc.tiles.triton_normaliser import (
    ReverseNormaliser,
    back_normaliser,
    begin_vector,
    carried_in,
    slope_of,
    through_vector,
    vector_past,
    vector_read,
)


class Back(Gradients):
    """The kernel that carries dS: gradients of values and of the rows that they are written with."""

    def __init__(
        self, kind: RecurrenceKind, program: TileProgram, wide: bool = False, spans: bool = False
    ) -> None:
        """wide: the state takes so many registers that, with a decay and an erase of one row, do is read again. spans:
        a sequence may be walked in several places at once."""
        super().__init__(kind, program, "walk_back")
        self.spans = spans
        self.wide = wide and self.decayed_rows and kind.erase == "delta"

    def read_again(self) -> set[str]:
        return {"do_VC"} if self.wide else set()

    def view(self) -> View:
        """The kernel's lines; of long kernels, which an erase of two rows makes, in functions."""
        view = super().view()
        if self.kind.erase != "pair" and not self.kind.beside:
            return view
        values, rows = (1, 3) if self.kind.erase == "pair" else (3, 5)
        phases = []
        if self.kind.beside:
            pairs = "Scores again, and what they receive."
            phases = [
                Phase("divisor_gradients", "What the divisor of each token receives.", 0, self.starts[1]),
                Phase("back_scores", pairs, self.starts[1], self.starts[values]),
            ]
        phases += [
            Phase("value_gradients", "What values receive.", self.starts[values], self.starts[rows]),
            Phase("row_gradients", "What rows receive that write.", self.starts[rows], self.starts[-1]),
        ]
        lines, functions = in_functions(view.lines, phases, [*view.update, *view.closing, "dS_VK"])
        if self.kind.beside:
            here = carried_in(self.spans)
            functions += [begin_vector(here), *([through_vector(here)] if self.decayed_rows else [])]
        says = "What the state receives before a chunk by what it does behind it."
        update = outlined("state_gradients", says, view.update, [*view.closing, "dS_VK"])
        return replace(view, lines=lines, update=[update.call], functions=[*functions, update])

    def groups(self) -> Iterator[tuple[list[Step], list[str]]]:
        """First what comes through o, then values, then the rows that they are written with; ahead of all what a
        normaliser receives, whose memory is then free.

        Pairs are narrowed as soon as they are made, while nothing else is held. Within the chunk, rows that read as
        well get their part in the other kernel, which has the same pairs.
        """
        if self.kind.erase == "pair":
            yield from self.two_rows()
            return
        if self.kind.beside:
            self.divided()
            self.ahead = [self.load("v_VC"), self.load("do_VC"), "share_C"]
            yield [], ["dz_C"]
            self.ahead = []
        own = [step for step in self.steps if step.operation == "pair" and self.own(step)]
        for step in own:
            self.placed.add(f"{step.result}_JC")
        yield own, []
        yield self.early(), []
        values = self.value_steps()
        state = [step for step in values if step.operation == "read"]
        yield state, ["written_C"] if (self.decayed_rows or self.scalar) and not self.kind.beside else []
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
            yield [*through, *([] if self.joined(x) else within)], [f"{self.gradient_of_write(x)}_KC"]
        yield [], []

    def two_rows(self) -> Iterator[tuple[list[Step], list[str]]]:
        """Of an erase of two rows: all scores, while nothing else is held; one value after the other; then what comes
        through dS to the rows that write. All else that these receive is for the other kernel, which has the pairs."""
        self.ahead = [self.load(f"{name}_CK") for name in (*self.writes, "q", "r")]
        scores = [P for name, P in self.scores_of.items() if self.applied_to(name)]
        self.placed |= {f"{P.result}_JC" for P in scores}
        yield scores, []
        values = [step for step in self.steps if step.operation in ("apply", "read", "solve")]
        values.sort(key=lambda step: ("read", "apply", "solve").index(step.operation))
        for made in (("dU", "dE"), ("dv",)):
            yield [step for step in values if step.result in made], [f"{made[-1]}_VC"]
        for x, y in self.writes.items():
            through = [step for step in self.steps if step.operation == "project"]
            yield (
                [step for step in through if step.operands[0].base == y],
                [f"{self.gradient_of_write(x)}_KC"],
            )
        yield [], []

    def early(self) -> list[Step]:
        """The scores through which values reach o."""
        early = [P for name, P in self.scores_of.items() if self.applied_to(name) == "do"]
        for P in early:
            self.placed.add(f"{P.result}_JC")
        return early

    def value_steps(self) -> list[Step]:
        """What makes gradients of values."""
        return [step for step in self.steps if step.result in ("dv", "dU", "dE") and not self.reads(step)]

    def normaliser(self) -> ReverseNormaliser:
        """The gradient of the vector, carried as dS is."""
        return back_normaliser(self.spans) if self.kind.beside else ReverseNormaliser()

    def divided(self) -> str:
        """What these columns give to a token's normaliser."""
        self.load("do_VC"), self.load("result_VC")
        slope = f" * {self.factor('slope_C', slope_of(self))}" if self.kind.normalize == "max" else ""
        return self.factor("dz_C", f"-tl.sum(do_VC.to(tl.float32) * result_VC, 0) * share_C{slope}")

    def closing(self) -> list[str]:
        """The vector's gradient goes on behind all else, when registers are free."""
        if not self.kind.beside:
            return []
        here = carried_in(self.spans)
        if not self.decayed_rows:
            return self.past_vector(here, "row")
        read = next(step for step in self.steps if step.operation == "read" and not self.reads(step))
        *given, _ = self.past_vector(here, "row")
        met = times("met_C", self.decay_of(read.operands[0].exponent))
        written = self.put_out("written_C").replace(" written_C,", f" written_C + {met},")
        return [*given, through_vector(here).call, written]

    def past_vector(self, x: str, row: str) -> list[str]:
        """The lines that carry the vector's gradient past a chunk: by what its queries give to it."""
        update = next(step for step in self.steps if step.operation == "update")
        given = times(self.divided(), self.decay_of(update.operands[1].exponent))
        return vector_past(x, row, "q", given, self.decayed_rows)

    def own(self, step: Step) -> bool:
        """Whether a pair makes gradients here, and is known from the start."""
        P = self.scores_of.get(step.result[1:])
        return P is not None and step.operands[0].base == "do" and not self.joined(P.operands[1].base)

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
                scores = scaled(scores, f"scale * {self.load(self.scalar)}", "[:, None]")
            else:
                scores = times(scaled(scores, self.number(self.scalar), "[:, None]"), scale)
            yield f"{step.result}_JC = ({scores}).to(dtype)"
            return
        product = f"dot(tl.trans({self.value(y)}), {self.value(x)}{self.narrow(x)})"
        product = self.from_output(x, ("-" if step.sign < 0 else "") + product)
        product = self.masked(self.scores_of[step.result[1:]], product)
        yield f"{step.result}_JC = ({scaled(product, self.number(self.scalar), '[:, None]')}).to(dtype)"

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
        yield self.read_product(step)
        if self.joined(x.base) and not self.both(x.base) or not decay and not self.scalar:
            return
        yield self.add("written_C", f"tl.sum({self.load(f'{y}_VC')} * {step.result}_VC, 0)")
        if self.scalar:
            yield f"{step.result}_VC *= {self.load(self.scalar)}[None, :]"

    def read_product(self, step: Step) -> str:
        """dy += x dS alone."""
        x = step.operands[0]
        product = f"dot(dS_VK.to(dtype), tl.trans({self.load(f'{x.base}_CK')}))"
        return self.add(f"{step.result}_VC", scaled(product, self.decay_of(x.exponent), "[None, :]"))

    def _project(self, step: Step) -> Iterator[str]:
        """dx = y dS^T for rows that write."""
        y, S = step.operands
        if S.base != "dS_next":
            return
        base = next(x for x, value in self.writes.items() if value == y.base)
        product = f"dot(tl.trans(dS_VK.to(dtype)), {self.load(f'{y.base}_VC')})"
        if self.kind.beside:
            product = f"({product} + {vector_read(self.spans)}[:, None])"
        weight = "" if self.joined(base) else self.number(self.scalar)  # which `walk_again` multiplies with
        text = scaled(product, times(self.decay_of(step.into), weight), "[None, :]")
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
            factor = times(self.scale(dz), self.decay_of(x.exponent))
            value = self.value(dz)
            if factor and factor != "scale":
                factor = f"({factor})" if " " in factor else factor
                value = f"({value} * {'-' if sign < 0 else ''}{factor}[None, :])"
            elif factor or sign < 0:
                value = f"({'-' if sign < 0 else ''}{times(value, factor)})"
            yield f"dS_VK += dot({value}.to(dtype), {self.load(f'{x.base}_CK')})"

    _combine = _gather = _contract = Gradients._nothing
