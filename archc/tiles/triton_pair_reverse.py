"""Print the second walk of a backward with a decay per key channel and an erase of any two rows.

Two rows read the state and two write into it, so there are four kinds of pairs within a chunk. The kernel has not the
registers for what they share: it takes one kind after the other, and reads each time again what it needs. Pairs that
no decay touches are one number a token, and rows of neighbours are read one token further.
"""

from __future__ import annotations

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Step
from archc.tiles.triton_channel_again import Again
from archc.tiles.triton_channel_reverse import (
    ChannelLaunch,
    channel_reverse_source,
    has_channel_reverse,
)
from archc.tiles.triton_spans import Ahead


def has_pair_reverse(kind: RecurrenceKind) -> bool:
    """Whether a class has these kernels."""
    return has_channel_reverse(kind) and kind.erase == "pair"


def pair_reverse_source(kind: RecurrenceKind, launch: ChannelLaunch, ahead: Ahead | None = None) -> str:
    """The text of both walks and their launcher, as `channel_reverse_source` gives it. Raises ValueError likewise."""
    if not has_pair_reverse(kind):
        raise ValueError(f"no reverse kernels of an erase of two rows for a decay of the class {kind.decay}")
    return channel_reverse_source(kind, launch, ahead, PairAgain, "recurrence/kernels_pair_reverse.py.jinja")


class PairAgain(Again):
    """`walk_again`, one kind of pairs after the other."""

    def __init__(self, kind: RecurrenceKind) -> None:
        super().__init__(kind)
        self.held: set[str] = set()
        # Pairs that no decay touches: the name of their number a token, their step, whether of neighbours.
        self.numbers: list[tuple[str, Step, bool]] = []

    def load(self, tile: str) -> str:
        """A tile that was made, or comes from memory: as often as it was let go."""
        if tile not in self.made and tile not in self.held:
            self.held.add(tile)
            self.loaded[tile] = None
            self.out.append(self.load_line(tile))
        return tile

    def again(self, *tiles: str) -> None:
        """Let go of all tiles, and load these, ahead of the next product."""
        self.held.clear()
        for tile in tiles:
            self.load(tile)

    def reads_and_pairs(self) -> None:
        """One row that reads after the other: dx = dz S^T, dP = dz y^T and what it gives to x and y."""
        for step in self.reads:
            x, dx, first = self.read_of[step.result], f"{step.result}_CK", len(self.out)
            pairs = [score for score in self.steps if score.operation == "pair"]
            within = [score for score in pairs if self.scores_of(score).operands[0].base == x]
            for score in within:
                column = self.scores_of(score).operands[1].base
                dz, y = (f"{row.base}_CV" for row in score.operands)
                self.again("decay_CK", dz, y, f"{x}_CK", f"{column}_CK")
                if score is within[0]:
                    self.read(step)
                self.within(score)
            self.again(f"{x}_CK")
            seen = f"{x}_CK * {dx}"
            self.put(
                "ddecay_CK", f"later({seen})" if step.into == "<" else f"tl.cumsum({seen}, 0, reverse=True)"
            )
            for name, score, neighbour in self.of_read(x):
                P, place = self.scores_of(score), "start - 1" if neighbour else "start"
                y = f"{P.operands[1].base}_tiles.load([{place}, channel])"
                self.put(dx, f"{name}_C[:, None] * {y}", P)
            self.store(dx)
            self.phase(f"{x}_gradients", f"What {x} receives, and the rows that it meets in a chunk.", first)

    def scores_of(self, step: Step) -> Step:
        """The score whose gradient a step makes."""
        return self.scores[step.result[1:]]

    def read(self, step: Step) -> None:
        """dx = dz S^T for rows that read, and what the decay up to them receives."""
        x, dz = self.read_of[step.result], step.operands[0]
        scale = " * scale" if dz.base == "do" else ""
        self.out.append("G_CK = tl.cumsum(decay_CK, 0)")
        factor = f"tl.exp({'G_CK' if step.into == '+' else 'G_CK - decay_CK'})"
        text = f"dot({dz.base}_CV, S_VK.to(dtype)) * {factor}{scale}"
        self.put(f"{step.result}_CK", text, step, step.sign < 0)
        self.put("seen_K", f"tl.sum({x}_CK * {step.result}_CK, 0)")

    def within(self, step: Step) -> None:
        """dP of one kind of pairs, and what it gives to rows that a decay parts."""
        P, (dz, y) = self.scores_of(step), step.operands
        scale = " * scale" if dz.base == "do" else ""
        pairs = f"{step.result}_CJ"
        self.put(pairs, f"dot({dz.base}_CV, tl.trans({y.base}_CV)){scale}", step, step.sign < 0)
        left, right = P.operands
        before = left.exponent == "<"
        if before or P.mask == "inclusive":
            near = "j_1J + 1 == c_C1" if before else "j_1J == c_C1"
            self.out.append(f"own_{P.result}_C = tl.sum(tl.where({near}, {pairs}, 0.0), 1)")
            self.numbers.append((f"own_{P.result}", step, before))
        narrow = f"tl.where(j_1J + 1 < c_C1, {pairs}, 0.0)" if before else pairs
        dx, dy = (f"{name}_CK" for name in self.gradients(P))
        if dy not in self.made:
            self.put(dy, f"tl.zeros_like({dx})")
        given = f"{narrow}.to(dtype), {left.base}_CK, {right.base}_CK, decay_CK, {before}, C"
        self.out.append(f"{dx}, {dy} = pair_gradients({dx}, {dy}, {given})  # {P.number}")

    def decay(self) -> None:
        """What the decay receives, and the parts through the state that join the gradients then."""
        rows = [x.base for x, _ in self.writes]
        self.again("decay_CK", *(f"{x}_CK" for x in rows))
        within = " + ".join(f"{x}_CK * d{x}_CK" for x in rows)
        through = " + ".join(f"{x}_CK * d{x}_state_CK" for x in rows)
        self.out += [
            f"ddecay_CK -= tl.cumsum({within}, 0, reverse=True)",
            "G_CK = tl.cumsum(decay_CK, 0)",
            "G_end_K = tl.sum(tl.where(c_C1 == C - 1, G_CK, 0.0), 0)",
            "out_CK = tl.exp(G_end_K[None, :] - G_CK)",
            "left_K = anchor_K - seen_K",
            "anchor_K = tl.where((tl.exp(G_end_K) > 0.0) & (tl.abs(left_K) > eps * tl.abs(seen_K)), left_K, 0.0)",
        ]
        for x in rows:
            self.load(f"d{x}_state_CK")
            self.out[-1] += " * out_CK"
            self.put(f"d{x}_CK", f"d{x}_state_CK")
        self.out += [
            f"written_CK = {through}",
            "ddecay_CK += anchor_K[None, :] + earlier(written_CK)",
            "anchor_K += tl.sum(written_CK, 0)",
        ]
        self.store("ddecay_CK")

    def untouched(self) -> None:
        """Pairs of a token with itself, or with the one before it, that meet without a decay."""
        rows = [row for row in self.read_of.values() if self.of_read(row)]
        for x in rows:
            numbers = self.of_read(x)
            if not numbers[0][2]:
                self.load(f"{x}_CK")
                for name, score, _ in numbers:
                    dy = f"d{self.scores_of(score).operands[1].base}_CK"
                    self.put(dy, f"{name}_C[:, None] * {x}_CK")
                continue
            dz = numbers[0][1].operands[0].base
            scale = " * scale" if dz == "do" else ""
            # The next token has read what this one wrote, unless the next chunk has it.
            self.out += [
                f"{x}_CK = {x}_tiles.load([start + 1, channel])",
                f"{dz}_CV = {dz}_tiles.load([start + 1, 0]).to(tl.float32){scale}",
            ]
            for name, score, _ in numbers:
                number, y = f"{name.replace('own', 'next')}_C", score.operands[1].base
                own = f"tl.sum({dz}_CV * {y}_tiles.load([start, 0]), 1)"
                self.out.append(f"{number} = tl.where(tl.arange(0, C) < C - 1, {own}, 0.0)")
                dy = f"d{self.scores_of(score).operands[1].base}_CK"
                self.put(dy, f"{number}[:, None] * {x}_CK")

    def of_read(self, x: str) -> list[tuple[str, Step, bool]]:
        """Pairs of the row x that no decay touches."""
        return [number for number in self.numbers if self.scores_of(number[1]).operands[0].base == x]

    def finish(self) -> None:
        """Write the gradients of the rows that write."""
        for x, _ in self.writes:
            self.store(f"d{x.base}_CK")

    def update(self) -> None:
        number = next(step.number for step in self.program.steps if step.operation == "update")
        self.again(*(tile for x, y in self.writes for tile in (f"{x.base}_CK", f"{y.base}_CV")))
        self.out.append(f"S_VK *= tl.exp(G_end_K)[None, :]  # {number}")
        for x, y in self.writes:
            self.out.append(f"S_VK += dot(tl.trans({y.base}_CV), ({x.base}_CK * out_CK).to(dtype))")
