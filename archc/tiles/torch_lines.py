"""Print tile programs as lines of batched torch: how each tile operation reads for each kind of decay."""

from __future__ import annotations

from archc.tiles.program import Row, Step

# The decay factor that belongs to an exponent.
FACTORS = {"+": "in", "<": "before", "-": "out"}


class Printer:
    """Lines for one program. `factors` collects the decay tiles that the lines use, in order of first use.

    Tiles of all chunks are named `q_MCK`, tiles of one step of the walk `R_ACV`.
    """

    def __init__(self, decay: str, axes: dict[str, str], buffers: frozenset[str]) -> None:
        self.decay = decay
        self.axes = axes
        self.buffers = buffers
        self.factors: dict[str, str] = {}
        self.walking = False
        # Gradients of scores are taken before the decay: the exponent of their rows, by the gradient's name.
        self.exponent_of: dict[str, str] = {}

    # Names.

    def tile(self, name: str) -> str:
        """The name of a whole tile, sliced inside the walk."""
        if name in ("S", "S_next", "dS", "dS_next"):
            if self.walking:
                return {"S": "S_AKV", "S_next": "S_next_AKV"}.get(name, "dS_AKV")
            return f"{name}_MKV"
        if name not in self.buffers and self.walking:
            return f"{name}_A{self.axes[name]}"
        axes = self.axes[name]
        suffix = "M" if axes == "1" else f"M{axes}"
        return f"{name}_{suffix}[m]" if self.walking else f"{name}_{suffix}"

    def factor(self, name: str, axes: str, text: str) -> str:
        """The name of a decay tile, which is computed once before the walk."""
        full = f"{name}_M{axes}"
        self.factors.setdefault(full, text)
        return f"{full}[m]" if self.walking else full

    def beta(self, name: str, row: bool = False) -> str:
        """A row scalar as a column `[M, C, 1]`, or along the columns of scores as `[M, 1, C]`."""
        axes, index = ("1C", "[:, None, :]") if row else ("C1", "[:, :, None]")
        return self.factor(name, axes, f"{name}_MC{index}")

    def decay_factor(self, exponent: str) -> str:
        """`e^G` ("+"), `e^(G - decay)` ("<") or `e^(G_end - G)` ("-"), shaped to multiply rows."""
        axes = self.axes["G"]
        text = {
            "+": f"G_M{axes}.exp()",
            "<": f"(G_M{axes} - decay_M{axes}).exp()",
            "-": f"(G_M{axes}[:, -1:] - G_M{axes}).exp()",
        }[exponent]
        if axes == "C":
            return self.factor(FACTORS[exponent], "C1", f"{text}[:, :, None]")
        return self.factor(FACTORS[exponent], axes, text)

    def whole(self) -> str:
        """The decay of a whole chunk, shaped to multiply the state."""
        axes = self.axes["G"]
        if self.decay == "head":
            return self.factor("all", "11", "G_MC[:, -1:].exp()[:, :, None]")
        if self.decay == "key":
            return self.factor("all", "K1", "G_MCK[:, -1].exp()[:, :, None]")
        return self.factor("all", "1V", f"G_M{axes}[:, -1:].exp()")

    def between(self, exponent: str, scalar: str = "") -> str:
        """`e^(G_i - G_j)` for all pairs that may see each other, zero elsewhere."""
        if exponent == "+":
            name = self.factor("between", "CC", "_between(G_MC, G_MC, diagonal=0)")
        else:
            name = self.factor("between_before", "CC", "_between(G_MC - decay_MC, G_MC, diagonal=-1)")
        if scalar:
            plain = name.removesuffix("[m]")
            row = self.beta(scalar, row=True).removesuffix("[m]")
            return self.factor(f"{scalar}_{plain.removesuffix('_MCC')}", "CC", f"{plain} * {row}")
        return name

    def cumulative(self, exponent: str) -> str:
        """The cumulative decay that an exponent stands for."""
        axes = self.axes["G"]
        if exponent == "<":
            return self.factor("G_before", axes, f"G_M{axes} - decay_M{axes}")
        return self.tile("G")

    # Rows as operands of a product: a tile and what multiplies the product afterwards.

    def key_row(self, row: Row) -> tuple[str, str]:
        """A row that is contracted with the state over K: its tile, and the factor that is left for outside."""
        if row.exponent and self.decay == "head":
            if row.scalar:
                factor = self.decay_factor(row.exponent).removesuffix("[m]")
                column = self.beta(row.scalar).removesuffix("[m]")
                name = f"{row.scalar}_{FACTORS[row.exponent]}"
                return self.tile(row.base), self.factor(name, "C1", f"{column} * {factor}")
            return self.tile(row.base), self.decay_factor(row.exponent)
        outside = self.beta(row.scalar) if row.scalar else ""
        return self.decayed(row), outside

    def decayed(self, row: Row) -> str:
        """A row with a decay of its own in every channel, as a tile."""
        if not row.exponent or self.decay == "head":
            return self.tile(row.base)
        factor = self.decay_factor(row.exponent)
        if self.walking and row.base not in self.buffers:
            return f"{self.tile(row.base)} * {factor}"
        whole = f"{row.base}_M{self.axes[row.base]}"
        text = f"{whole} * {factor.removesuffix('[m]')}"
        return self.factor(f"{row.base}_{FACTORS[row.exponent]}", self.axes[row.base], text)

    # Statements.

    def assign(self, step: Step, product: tuple[str, str] | str, factor: str = "", after: str = "") -> str:
        """`result (+)= sign * product * factor`, in place where the result exists."""
        target = self.tile(step.result)
        text = f"torch.bmm({product[0]}, {product[1]})" if isinstance(product, tuple) else product
        if step.adds:
            if factor:
                value = ", value=-1" if step.sign < 0 else ""
                return f"{target}.addcmul_({text}{after}, {factor}{value})"
            if isinstance(product, tuple) and not after:
                alpha = ", alpha=-1" if step.sign < 0 else ""
                return f"{target}.baddbmm_({product[0]}, {product[1]}{alpha})"
            return f"{target}.{'sub_' if step.sign < 0 else 'add_'}({text}{after})"
        plain = isinstance(product, tuple) and not factor and not after and step.sign > 0
        if self.walking and step.result in self.buffers:
            if plain:
                return f"torch.bmm({product[0]}, {product[1]}, out={target})"
            if factor and step.sign > 0:
                return f"torch.mul({text}{after}, {factor}, out={target})"
            text = f"{text}{after} * {factor}" if factor else f"{text}{after}"
            return f"{target} = {'-' if step.sign < 0 else ''}{text}"
        if factor:
            text += f".mul_({factor})"
        if step.sign < 0:
            text += ".neg_()"
        return f"{target} = {text}{after}"

    def lines(self, step: Step) -> list[str]:
        """The statements of one step."""
        text = getattr(self, f"_{step.operation}")(step)
        return [text] if isinstance(text, str) else text

    def _cumulative(self, step: Step) -> str:
        return f"{self.tile('G')} = {self.tile('decay')}.cumsum(1)"

    def _pair(self, step: Step) -> str:
        x, y = step.operands
        mask = ".tril_()" if step.mask == "inclusive" else ".tril_(-1)"
        if x.exponent and self.decay != "head":
            inclusive = step.mask == "inclusive"
            text = (
                f"_pair({self.tile(x.base)}, {self.tile(y.base)}, {self.cumulative(x.exponent)}, "
                f"{self.tile('G')}, inclusive={inclusive})"
            )
            return self.assign(step, text, self.beta(y.scalar, row=True) if y.scalar else "")
        product = (self.tile(x.base), f"{self.tile(y.base)}.mT")
        if self.decay == "head":
            exponent = x.exponent or self.exponent_of[step.result]
            after = ".tril_(-1)" if step.mask == "strict" and exponent == "+" else ""
            return self.assign(step, product, self.between(exponent, y.scalar), after)
        return self.assign(step, product, self.beta(y.scalar, row=True) if y.scalar else "", mask)

    def _invert(self, step: Step) -> str:
        argument = self.tile(step.operands[0].base)
        return f"{self.tile(step.result)} = _inverse({'-' if step.minus else ''}{argument})"

    def _apply(self, step: Step) -> str:
        P, y = step.operands
        scores = self.tile(P.base)
        if y.scalar:
            scores = f"{scores} * {self.beta(y.scalar, row=True)}"
        if step.into and self.decay != "head":
            name = "_apply_transposed" if step.transposed else "_apply"
            above = self.cumulative(step.into) if not step.transposed else self.cumulative(y.exponent)
            inclusive = step.mask == "inclusive"
            text = f"{name}({scores}, {self.tile(y.base)}, {above}, {self.tile('G')}, inclusive={inclusive})"
            return self.assign(step, text)
        if step.transposed:
            scores = f"{scores}.mT"
        return self.assign(step, (scores, self.tile(y.base)))

    def _extract(self, step: Step) -> list[str]:
        scores, result = self.tile(step.operands[0].base), self.tile(step.result)
        if step.mask == "neighbour":
            return [f"{result} = {scores}.diagonal(-1, 1, 2).clone()", f"{scores}.tril_(-2)"]
        return [f"{result} = {scores}.diagonal(0, 1, 2).clone()", f"{scores}.tril_(-1)"]

    def _scale(self, step: Step) -> str:
        a, b = (self.tile(row.base) for row in step.operands)
        return f"{self.tile(step.result)} = {a}{'[:, :-1]' if step.mask == 'neighbour' else ''} * {b}"

    def _add(self, step: Step) -> str:
        row = step.operands[0]
        result, x = self.tile(step.result), self.tile(row.base)
        if not row.scalar:
            return f"{result}.add_({x})"
        if step.mask == "neighbour":
            to, of = ("[:, :-1]", "[:, 1:]") if step.transposed else ("[:, 1:]", "[:, :-1]")
            result, x = f"{result}{to}", f"{x}{of}"
        return f"{result}.addcmul_({x}, {row.scalar}_MC[:, :, None])"

    def _solve(self, step: Step) -> str:
        inverse, right = (self.tile(row.base) for row in step.operands[:2])
        return self.assign(step, (f"{inverse}.mT" if step.transposed else inverse, right))

    def _read(self, step: Step) -> str:
        x, S = step.operands
        rows, factor = self.key_row(x)
        if step.into:
            factor = self.decay_factor(step.into)
        return self.assign(step, (rows, self.tile(S.base)), factor)

    def _project(self, step: Step) -> str:
        y, S = step.operands
        factor = self.decay_factor(step.into) if step.into else ""
        return self.assign(step, (self.decayed(y), f"{self.tile(S.base)}.mT"), factor)

    def _update(self, step: Step) -> list[str]:
        old, new = self.tile(step.operands[0].base), self.tile(step.result)
        lines = []
        in_place = old == new
        if self.decay != "none":
            whole = self.whole()
            lines.append(f"{old}.mul_({whole})" if in_place else f"torch.mul({old}, {whole}, out={new})")
        signs = step.signs or (1,) * ((len(step.operands) - 1) // 2)
        for index, (x, y, sign) in enumerate(
            zip(step.operands[1::2], step.operands[2::2], signs, strict=True)
        ):
            rows, factor = self.key_row(x)
            columns = self.decayed(y)
            if factor:
                columns = f"{columns} * {factor}"
            alpha = ", alpha=-1" if sign < 0 else ""
            if index == 0 and self.decay == "none" and not in_place:
                lines.append(f"torch.baddbmm({old}, {rows}.mT, {columns}{alpha}, out={new})")
            else:
                lines.append(f"{new}.baddbmm_({rows}.mT, {columns}{alpha})")
        return lines

    def _combine(self, step: Step) -> str:
        a, b = step.operands
        result, left, right = self.tile(step.result), self.tile(a.base), self.tile(b.base)
        if b.scalar:
            return f"{result} = {left}.addcmul_({right}, {self.beta(b.scalar)})"
        return f"{result} = {left} {'-' if step.sign < 0 else '+'} {right}"

    def _contract(self, step: Step) -> str:
        x, dx = step.operands
        over = {"1": "(1, 2)", "K": "2", "V": "1", "C": "2"}[self.axes[step.result]]
        return f"{self.tile(step.result)} = ({self.tile(x.base)} * {self.tile(dx.base)}).sum({over})"

    def _gather(self, step: Step) -> list[str]:
        """What a decay receives: reads from its token on, less writes from there on, and writes to the state before."""
        axes = self.axes["decay"]
        dG, result = f"dG_M{axes}", self.tile(step.result)
        over_channels = axes == "C"
        pairs = list(zip(step.operands[1::2], step.operands[2::2], strict=True))

        def received(role: Row, gradient: Row) -> str:
            text = f"{self.tile(role.base)} * {self.tile(gradient.base)}"
            text = f"({text}).sum(2)" if over_channels else text
            if not role.scalar:
                return text
            return f"{role.scalar}_MC * {text}" if over_channels else f"{self.beta(role.scalar)} * {text}"

        lines: list[str] = []
        index = {"C": "[:, 0, 0]", "CK": "[:, :, 0]", "CV": "[:, 0]"}[axes]
        plus = " + ".join(received(*pair) for pair in pairs if pair[0].exponent == "+")
        minus = "".join(f" - {received(*pair)}" for pair in pairs if pair[0].exponent == "-")
        lines.append(f"{dG} = {plus}{minus}")
        lines.append(f"{dG}[:, -1] += {self.tile('anchor')} * {self.whole()}{index}")
        lines.append(f"{result} = {dG}.flip(1).cumsum(1).flip(1)")
        before = " + ".join(received(*pair) for pair in pairs if pair[0].exponent == "<")
        if before:
            lines.append(f"dG_before_M{axes} = {before}")
            lines.append(f"{result}[:, :-1] += dG_before_M{axes}[:, 1:].flip(1).cumsum(1).flip(1)")
        written = " + ".join(received(*pair) for pair in pairs if pair[0].exponent == ">")
        if written:
            lines.append(f"dG_after_M{axes} = {written}")
            lines.append(f"{result}[:, 1:] += dG_after_M{axes}[:, :-1].cumsum(1)")
        return lines
