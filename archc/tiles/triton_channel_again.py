"""Print the second walk of a backward with a decay per key channel: what rows and decays receive, by key channels.

It carries S from the start of every segment. Every channel is on its own, pairs of tokens included, so that its tiles
are small, and no sum is left open. Rows are loaded again where they are used again, and a gradient that is done is
written at once: little lives from one kind of pairs to the next.
"""

from __future__ import annotations

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Row, Step
from archc.tiles.triton_channel_lines import ChannelLines, View
from archc.tiles.triton_functions import in_functions
from archc.tiles.triton_lines import load_line
from archc.tiles.triton_source import INPUTS
from archc.tiles.triton_squares import ABOVE, GRADIENTS, shares_squares


class Again(ChannelLines):
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
        self.let_go()
        self.decay()
        self.phase("decay_gradients", "What the log decays receive, and anchor behind the chunk.", first)
        first = len(self.out)
        self.let_go()
        self.untouched()
        if self.kind.erase == "pair":
            self.phase(
                "near_gradients", "What rows that write receive from pairs that no decay touches.", first
            )
        self.finish()
        self.let_go()
        self.update()
        opening = [self.open(tile) for tile in (*self.loaded, *self.stored) if not tile.endswith("_C")]
        constants = ["H", *self.heads(), "K", "CHANNELS", "V", "BLOCK_V", "C", "PACKED", "SEGMENT"]
        made = [tile.rsplit("_", 1)[0] for tile in self.stored]
        lines, functions = in_functions(self.out, self.phases, ["S_VK", "anchor_K"])
        return View(self.names(), made, constants, opening, lines, [], [], functions)

    # Memory.

    def let_go(self) -> None:
        """Load again what is used again: with an erase of two rows there is no room for them in between."""
        if self.kind.erase == "pair":
            self.here.clear()

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

    def gradient(self, P: Step) -> str:
        """The gradient of a score, `[C, J]`, of which pairs of earlier tokens are right."""
        tile = f"d{P.result}_CJ"
        if not shares_squares(self.kind):
            return self.load(tile)
        square = self.load(f"{GRADIENTS[P.result]}_CJ")
        if P.result not in ABOVE:
            return square
        if tile not in self.here:
            self.here.add(tile)
            self.out.append(f"{tile} = tl.trans({square})")
        return tile

    def diagonal(self, P: Step) -> str:
        """The tile that has pairs of a token with itself on its diagonal."""
        if not shares_squares(self.kind):
            return self.load(f"d{P.result}_CJ")
        return self.load("dr_scores_CJ") if P.result == "qw" else self.gradient(P)

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
                self.put(dx, self.near_read(P), P)
        if dx in ("dq_CK", "dr_CK"):
            self.store(dx)

    def pairs(self, P: Step) -> None:
        """What pairs give to rows that a decay parts."""
        left, right = P.operands
        before = left.exponent == "<"
        if self.own(P):
            own = f"tl.sum(tl.where(j_1J == c_C1, {self.diagonal(P)}, 0.0), 1)"
            self.out.append(f"own_{P.result}_C1 = {own}.to(tl.float32)[:, None]")
        gradient = self.gradient(P)
        if before:
            gradient = f"tl.where(j_1J + 1 < c_C1, {gradient}, 0.0)"
        given = f"{gradient}, {self.rows(left)}, {self.rows(right)}, decay_CK, {before}, C"
        self.out.append(f"read_CK, write_CK = pair_gradients({given})  # {P.number}")
        for result, part in zip(self.gradients(P), ("read_CK", "write_CK"), strict=True):
            self.put(f"{result}_CK", part)

    def near(self, P: Step) -> str:
        """Gradients of pairs of a token with the one before it."""
        return f"tl.where(j_1J + 1 == c_C1, {self.gradient(P)}, 0.0).to(dtype)"

    def near_read(self, P: Step) -> str:
        """What such pairs give to the row that reads."""
        if not shares_squares(self.kind):
            return f"dot({self.near(P)}, {self.rows(P.operands[1])})"
        return f"{self.near_number(P, 1)} * {P.operands[1].base}_tiles.load([start - 1, channel])"

    def near_write(self, P: Step) -> str:
        """What they give to the row that writes, which the next token reads."""
        if not shares_squares(self.kind):
            return f"dot(tl.trans({self.near(P)}), {self.rows(P.operands[0])})"
        return f"{self.near_number(P, 0)} * {P.operands[0].base}_tiles.load([start + 1, channel])"

    def near_number(self, P: Step, axis: int) -> str:
        """One number a token: of the token that reads, or of the one that wrote."""
        name = f"{('next', 'near')[axis]}_{P.result}_C1"
        near = f"tl.where(j_1J + 1 == c_C1, {self.gradient(P)}, 0.0)"
        self.out.append(f"{name} = tl.sum({near}, {axis}).to(tl.float32)[:, None]")
        return name

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
                self.put(dy, self.near_write(P), P)

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
