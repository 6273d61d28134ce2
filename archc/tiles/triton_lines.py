"""Print tile programs as Triton: how each tile operation reads inside the kernels `prepare` and `walk`.

Values are held transposed: the state `S_VK`, values `v_VC`, scores `qk_JC` with J the token that wrote and C the one
that reads. So what belongs to a token scales columns of accumulators, and rows of q and k go from memory to the
matrix unit as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.triton_squares import SQUARES, score_lines, shares_squares

# The decay factor that belongs to an exponent, and the exponent's argument per token.
FACTORS = {"+": "in", "<": "before", "-": "out"}
EXPONENT = {"+": "G_{0}", "<": "G_{0} - decay_{0}", "-": "G_end_{1} - G_{0}"}
# What rows of one block of key channels are decayed with, from its decay.
BEFORE = {"in": "tl.cumsum({0}, 0)", "before": "tl.cumsum({0}, 0) - {0}"}
# Where a part of the key channels begins: all of them, or one of two halves.
CHANNEL = {"": "0", "1": "0", "2": "HALF"}


def walks_decay_rows(kind: RecurrenceKind) -> bool:
    """Whether walks decay the rows of keys that meet the state, rather than read what `prepare` has decayed.

    With an erase there are three such rows or more: to write and read them moves more than q, k and the decay again.
    """
    return kind.core().decay == "key" and kind.erase != "none"


def scores_kept(kind: RecurrenceKind) -> list[str]:
    """The scores that kernels of the backward have from the forward, since a decay along K makes them dear.

    With an erase the inverse is kept in any case; of an erase of two rows the others share squares with these two.
    """
    return ["qk"] if kind.core().decay == "key" else []


def row_line(base: str, factor: str, part: str = "") -> str:
    """The line that loads a row, or a part of its key channels, and decays it."""
    tile, decay = (part_of(name, part) for name in (f"{base}_{factor}_CK", f"{factor}_CK"))
    return f"{tile} = ({base}_tiles.load([start, {CHANNEL[part]}]) * {decay}).to(dtype)"


def factor_lines(factor: str, part: str = "") -> list[str]:
    """The lines that make the factor of decayed rows; the decay is loaded again rather than kept over products."""
    load = f"decay_tiles.load([start, {CHANNEL[part]}]).to(tl.float32)"
    made = part_of(f"{factor}_CK", part)
    if factor != "out":
        decay = part_of("decay_CK", part)
        return [f"{decay} = {load}", f"{made} = tl.exp({BEFORE[factor].format(decay)})"]
    G, G_end = part_of("G_CK", part), part_of("G_end_K", part)
    return [
        f"{G} = tl.cumsum({load}, 0)",
        f"{G_end} = tl.sum(tl.where(tl.arange(0, C)[:, None] == C - 1, {G}, 0.0), 0)",
        f"{made} = tl.exp({G_end}[None, :] - {G})",
    ]


def prepared(kind: RecurrenceKind, program: TileProgram, halves: bool = False) -> list[Step]:
    """The steps of the kernel `prepare`: what depends on no state and is not cheaper made again in the walk.

    The inverse and what it needs; with a decay along K all scores, since their exponents are as dear as the product;
    with a decay along V what a chunk's own tokens give to o. halves: for a walk with its state in two halves, which
    has no room for the scores of an erase of two rows and the decay between their tokens.
    """
    if kind.core().decay == "key" or (halves and kind.core().decay == "head" and kind.erase == "pair"):
        return [step for step in program.steps if step.operation in ("cumulative", "pair", "invert")]
    if kind.core().decay == "value":
        return [step for step in program.steps if step.operation in ("cumulative", "pair", "apply")]
    wanted = {row.base for step in program.steps if step.operation == "invert" for row in step.operands}
    return [
        step
        for step in program.steps
        if step.operation == "invert"
        or (wanted and (step.result in wanted or step.operation == "cumulative"))
    ]


class Lines:
    """The lines of one kernel. `factors` collects decay factors and gates in order of first use.

    kernel: "prepare" or "walk". loaded: tiles that the lines use and that come from memory, in order of first use,
    as (name, axes): "k_CK", "v_VC", "X_JC", and per token "beta_C". parts: of the state along its key channels, of
    which each has so many as `keys` says.
    """

    parts: tuple[str, ...] = ("",)
    keys = "BLOCK_K"

    def __init__(self, kind: RecurrenceKind, program: TileProgram, kernel: str) -> None:
        self.kind = kind
        self.decay = kind.core().decay
        self.program = program
        self.kernel = kernel
        self.blocked = kernel == "prepare" and self.decay == "key"  # by blocks of key channels
        self.decays_rows = kernel == "walk" and walks_decay_rows(kind)  # then tiles are loaded late
        self.factors: dict[str, str] = {}
        self.loaded: dict[str, None] = {}
        self.waiting: list[str] = []  # lines that stand ahead of the next one
        self.ready: set[str] = set()  # factors that rows are decayed with here
        self.part = ""  # of the key channels that these rows have
        self.made: set[str] = set()

    def of(self, steps: list[Step]) -> list[str]:
        """The lines of the steps, numbered."""
        lines: list[str] = []
        for step in steps:
            number = f"  # {step.number}"
            for line in getattr(self, f"_{step.operation}")(step):
                lines += [*self.waiting, line + number]
                self.waiting.clear()
                number = ""
            self.made.add(step.result)
        return lines

    # Tiles and what multiplies them.

    def channels(self) -> str:
        """The line that numbers the key channels."""
        return "channel_K = tl.arange(0, BLOCK_K)"

    def load(self, name: str) -> str:
        """A tile from memory."""
        if self.decays_rows and name not in self.loaded:
            self.waiting.append(load_line(name))
        self.loaded.setdefault(name)
        return name

    def decayed_row(self, base: str, factor: str) -> str:
        """A row that is loaded and decayed here."""
        if factor not in self.ready:
            self.waiting += factor_lines(factor, self.part)
            self.ready.add(factor)
        self.waiting.append(row_line(base, factor, self.part))
        self.loaded |= dict.fromkeys((f"{base}_CK", "decay_CK"))
        return part_of(f"{base}_{factor}_CK", self.part)

    def factor(self, name: str, text: str) -> str:
        """A vector over tokens, made before the steps."""
        self.factors.setdefault(name, text)
        return name

    def gate(self, name: str) -> str:
        """A row scalar such as beta, `[C]`."""
        return self.load(f"{name}_C")

    def decayed(self, exponent: str) -> str:
        """`e^G`, `e^(G - decay)` or `e^(G_end - G)`, one a token or, along V, one a token and value."""
        axes, end = ("VC", "V1") if self.decay == "value" else ("C", "1")
        self.load(f"decay_{axes}")
        self.factor(f"G_{axes}", f"tl.cumsum(decay_{axes}, {len(axes) - 1})")
        if exponent == "-":
            self.end()
        text = EXPONENT[exponent].format(axes, end).replace("_1 ", " ")
        return self.factor(f"{FACTORS[exponent]}_{axes}", f"tl.exp({text})")

    def end(self) -> None:
        """The log decay of the whole chunk: the last running sum itself, since a sum in another order rounds apart."""
        axes = "VC" if self.decay == "value" else "C"
        self.load(f"decay_{axes}")
        G = self.factor(f"G_{axes}", f"tl.cumsum(decay_{axes}, {len(axes) - 1})")
        if self.decay == "value":
            self.factor(
                "G_end_V1", f"tl.sum(tl.where(tl.arange(0, C)[None, :] == C - 1, {G}, 0.0), 1)[:, None]"
            )
        else:
            self.factor("G_end", f"tl.sum(tl.where(tl.arange(0, C) == C - 1, {G}, 0.0), 0)")

    def row(self, row: Row) -> tuple[str, str]:
        """A row that meets the state: its tile `[C, K]`, and the factor a token that is left for outside."""
        if self.decay == "key" and row.exponent:
            factor = FACTORS[row.exponent]
            tile = (
                self.decayed_row(row.base, factor)
                if self.decays_rows
                else self.load(f"{row.base}_{factor}_CK")
            )
            return tile, self.gate(row.scalar) if row.scalar else ""
        tile = self.load(f"{row.base}_CK")
        if not row.exponent or self.decay == "value":
            return tile, self.gate(row.scalar) if row.scalar else ""
        decay = self.decayed(row.exponent)
        if not row.scalar:
            return tile, decay
        name = f"{row.scalar}_{decay}"
        return tile, self.factor(name, f"{self.gate(row.scalar)} * {decay}")

    def value(self, row: Row) -> str:
        """A tile of values `[V, C]`: v from memory, or what the walk has made."""
        return f"{row.base}_VC" if row.base in self.made else self.load(f"{row.base}_VC")

    def scores(self, name: str) -> str:
        """Scores `[J, C]`: made here, or by `prepare`."""
        if name not in self.made and name in SQUARES and shares_squares(self.kind):
            lines, squares = score_lines(self.kind, name)
            self.waiting += lines
            self.loaded |= dict.fromkeys(squares)
            self.made.add(name)
        return f"{name}_JC" if name in self.made else self.load(f"{name}_JC")

    def decay_between(self, pair: Step) -> str:
        """The decay from the token that wrote to the one that reads, zero where it does not see it."""
        before = pair.operands[0].exponent == "<"
        self.load("decay_C")
        self.factor("G_C", "tl.cumsum(decay_C, 0)")
        above = "(G_C - decay_C)" if before else "G_C"
        return self.factor(
            f"between_{'before_' if before else ''}{pair.mask}_JC",
            f"tl.exp(tl.where({sees(pair)}, {above}[None, :] - G_C[:, None], -float('inf')))",
        )

    # Statements.

    def put(self, target: str, step: Step, text: str) -> str:
        """`target = text`, or added to it."""
        if step.result in self.made:
            return f"{target} {'-' if step.sign < 0 else '+'}= {text}"
        return f"{target} = {'-' if step.sign < 0 else ''}{text}"

    def _cumulative(self, step: Step) -> Iterator[str]:
        yield from ()  # factors say it

    def _pair(self, step: Step) -> Iterator[str]:
        x, y = step.operands
        left, right = self.load(f"{x.base}_CK"), self.load(f"{y.base}_CK")
        target = f"{step.result}_JC"
        if self.decay == "head":
            yield f"{target} = dot({right}, tl.trans({left})) * {self.decay_between(step)}"
        else:
            yield f"{target} = tl.where({sees(step)}, dot({right}, tl.trans({left})), 0.0)"
        yield from self.with_scalar(step)

    def pair_calls(self, steps: list[Step]) -> list[str]:
        """Scores under a decay along K, of which one or two are made at once from a block of key channels."""
        given = []
        for step in steps:
            x, y = step.operands
            given += [f"{step.result}_JC", self.load(f"{x.base}_CK"), self.load(f"{y.base}_CK")]
            self.made.add(step.result)
        given += [self.load("decay_CK"), str(steps[0].operands[0].exponent == "<")]
        given += [str(step.mask == "inclusive") for step in steps]
        targets = ", ".join(f"{step.result}_JC" for step in steps)
        numbers = ", ".join(str(step.number) for step in steps)
        return [f"{targets} = pair({', '.join(given)}, C)  # {numbers}"]

    def with_scalar(self, step: Step) -> list[str]:
        """The row scalar of scores, if they have one."""
        scalar = step.operands[1].scalar
        return [f"{step.result}_JC *= {self.gate(scalar)}[:, None]"] if scalar else []

    def _invert(self, step: Step) -> Iterator[str]:
        sign = "-" if step.minus else ""
        yield f"{step.result}_JC = inverse({sign}{self.scores(step.operands[0].base)}, C)"

    def _apply(self, step: Step) -> Iterator[str]:
        P, y = step.operands
        target = f"{step.result}_VC"
        if self.decay == "value" and step.into:
            shift = "True" if step.into == "<" else "False"
            self.load("decay_VC")
            text = f"apply({self.value(y)}, {self.scores(P.base)}, decay_VC, {shift}, {step.mask == 'inclusive'}, C)"
            yield self.put(target, step, text)
        else:
            yield self.put(target, step, f"dot({self.value(y)}.to(dtype), {self.scores(P.base)}.to(dtype))")

    def _solve(self, step: Step) -> Iterator[str]:
        inverse, right = step.operands[:2]
        text = f"dot({self.value(right)}.to(dtype), {self.scores(inverse.base)}.to(dtype))"
        yield self.put(f"{step.result}_VC", step, text)

    def _read(self, step: Step) -> Iterator[str]:
        tile, factor = self.row(step.operands[0])
        text = f"dot(S_VK.to(dtype), tl.trans({tile}))"
        if step.into:
            text += f" * {self.decayed(step.into)}"
        elif factor:
            text += f" * {factor}[None, :]"
        yield self.put(f"{step.result}_VC", step, text)

    def _update(self, step: Step) -> Iterator[str]:
        if self.decay == "head":
            self.load("decay_C")
            self.end()
            yield "S_VK *= tl.exp(G_end)"
        elif self.decays_rows:
            self.waiting += factor_lines("out")
            self.ready = {"out"}
            yield "S_VK *= tl.exp(G_end_K)[None, :]"
        elif self.decay == "key":
            yield f"S_VK *= tl.exp({self.load('G_end_K')})[None, :]"
        elif self.decay == "value":
            self.end()
            yield "S_VK *= tl.exp(G_end_V1)"
        for x, y in zip(step.operands[1::2], step.operands[2::2], strict=True):
            tile, factor = self.row(x)
            columns = self.value(y)
            if y.exponent:
                columns = f"({columns} * {self.decayed(y.exponent)})"
            elif factor:
                columns = f"({columns} * {factor}[None, :])"
            yield f"S_VK += dot({columns}.to(dtype), {tile})"

    def _combine(self, step: Step) -> Iterator[str]:
        a, b = (self.value(row) for row in step.operands)
        yield f"{step.result}_VC = {a} {'-' if step.sign < 0 else '+'} {b}"


def part_of(tile: str, part: str) -> str:
    """The name of a part of a tile: `k_CK` -> `k1_CK`."""
    base, axes = tile.rsplit("_", 1)
    return f"{base}{part}_{axes}"


def sees(pair: Step) -> str:
    """Whether the token that reads sees the one that wrote."""
    return f"j_J1 {'<' if pair.mask == 'strict' else '<='} c_1C"


def buffer_name(tile: str) -> str:
    """What a tile's tensor is called as an argument: `q_in_CK` -> `q_in`; of o, what `prepare` made is `inside`."""
    base = tile.rsplit("_", 1)[0]
    return {"o": "inside", "out": "o"}.get(base, base)


def load_line(tile: str, blocked: bool = False) -> str:
    """The line that loads a tile; blocked: its block of key channels."""
    base, axes = tile.rsplit("_", 1)
    wide = ".to(tl.float32)" if base in ("decay", "o") else ""
    name = buffer_name(tile)
    match axes:
        case "C":
            return f"{tile} = scalars({base}, start, inside_C, h, H, {base}_heads)"
        case "CK":
            return f"{tile} = {name}_tiles.load([start, {'channel' if blocked else 0}]){wide}"
        case "VC":
            return f"{tile} = tl.trans({name}_tiles.load([start, column])){wide}"
        case "JC":
            return f"{tile} = tl.trans({name}_tiles.load([start, 0]))"
        case _:
            return vector_line(tile, base, "channel_K")


def vector_line(name: str, base: str, channel: str) -> str:
    """The line that loads what a chunk has one of for each key channel."""
    at = f"(tl.cast(start // C + n, tl.int64) * H + h) * K + {channel}"
    return f"{name} = tl.load({base} + {at}, mask={channel} < K, other=0.0)"
