"""Derive the backward of a tile program by running it in reverse, one rule for each operation.

The gradient `dx` of a row in a role is taken with the role's decay stripped: for `y = f(x e^E)` it is the
gradient with respect to x, `e^E` included. What E receives is then `x * dx`, for every role at once. Summed over all
exponents that contain the decay of token t, that is its gradient: read sides from t on less write sides from t on,
writes into the state before t, and `<S, dS>` carried over the whole chunk at its end.

Where a head forgets fast all of these are small, and must not be differences of large numbers. So pairs that no
decay touches (a token with itself; with its neighbour, where the read comes before the decay) join the gradients of
their rows only after the decay has taken its part, and a write into the state counts for the tokens before it, not
as the difference of all tokens and those from it on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from archc.tiles.program import Row, Step, TileProgram


def reverse(program: TileProgram) -> TileProgram:
    """The program that takes `do` and `dS_next` to `dS` and the gradients of the inputs."""
    derivation = _Derivation(program)
    for step in reversed(program.steps):
        RULES[step.operation](derivation, step)
    return derivation.finish()


class _Derivation:
    def __init__(self, program: TileProgram) -> None:
        self.program = program
        self.axes = {**program.axes, "dS_next": "KV", "dS": "KV", "do": "CV"}
        self.steps: list[Step] = []
        self.alias: dict[str, tuple[str, int]] = {}
        self.state_pairs: list[tuple[Row, Row, int]] = []
        self.late: list[tuple[Step, str]] = []  # what joins a gradient after the decay has taken its part
        self.decayed: list[tuple[Row, Row]] = []  # rows with a decay and their gradients, besides the roles
        self.state_step = 0
        self.roles: dict[str, list[Row]] = {}
        for step in program.steps:
            for row in step.operands:
                known = self.roles.setdefault(row.base, [])
                if row not in known:
                    known.append(row)

    def gradient(self, row: Row) -> str:
        """The name of a row's gradient: one for each role that its base plays."""
        if len(self.roles.get(row.base, ())) < 2:
            return f"d{row.base}"
        return f"d{row.base}_{'write' if row.exponent == '-' or row.scalar else 'read'}"

    def of(self, name: str, exponent: str = "") -> tuple[Row, int]:
        """The gradient of a computed value and its sign."""
        target, sign = self.alias.get(name, (f"d{name}", 1))
        return Row(target, exponent), sign

    def add(self, step: Step, like: str) -> None:
        """Append a step, which adds to its result if an earlier one defined it, with the axes of `like`."""
        self.axes[step.result] = self.axes[like]
        self.steps.append(replace(step, adds=any(earlier.result == step.result for earlier in self.steps)))

    def own(self, P: Row, step: Step, which: str) -> str:
        """Take the pairs out of P that no decay touches."""
        name = f"own_{step.result if P.base.startswith('d') else P.base}"
        self.add(Step(name, "extract", (P,), step.number, which), like=P.base)
        self.axes[name] = "C"
        return name

    def through_state(self, step: Step, row: Row) -> None:
        """A row's gradient through the state, kept apart from that within the chunk if the row decays."""
        gradient = self.gradient(row)
        if not row.exponent:
            self.add(replace(step, result=gradient), like=row.base)
            return
        part = f"d{row.base}_state"
        self.add(replace(step, result=part), like=row.base)
        self.decayed.append((replace(row, exponent=">"), Row(part)))
        self.late.append((Step(gradient, "add", (Row(part),), step.number), row.base))

    def finish(self) -> TileProgram:
        """Close the state's cycle and bring the gradients of the roles together."""
        decayed = "decay" in self.program.inputs
        if decayed:
            self.add(Step("anchor", "contract", (Row("S"), Row("dS_next")), self.state_step), like="G")
            self.axes["anchor"] = self.axes["G"].replace("C", "") or "1"
        rows = [row for left, right, _ in self.state_pairs for row in (left, right)]
        signs = tuple(sign for _, _, sign in self.state_pairs)
        self.add(Step("dS", "update", (Row("dS_next"), *rows), self.state_step, signs=signs), like="dS")
        if decayed:
            self._decay()
        for step, like in self.late:
            self.add(step, like)
        inputs = {base: roles for base, roles in self.roles.items() if base in self.program.inputs}
        for base, roles in inputs.items():
            for role in roles:
                if role.scalar:
                    parts = (Row(base), Row(self.gradient(role)))
                    self.add(Step(f"d{role.scalar}", "contract", parts, 0), like=role.scalar)
        for base, roles in inputs.items():
            if len(roles) > 1:
                received = tuple(Row(self.gradient(role), scalar=role.scalar) for role in roles)
                self.add(Step(f"d{base}", "combine", received, 0), like=base)
        names = (*self.program.inputs, "do", "S")
        return TileProgram(tuple(self.steps), self.axes, names, "dS_next", "dS")

    def _decay(self) -> None:
        """Every row with a decay gives a part of the decay's gradient."""
        operands: list[Row] = [Row("anchor")]
        for roles in self.roles.values():
            for role in roles:
                if role.exponent:
                    operands += [role, Row(self.gradient(role))]
        for row, gradient in self.decayed:
            operands += [row, gradient]
        self.add(Step("ddecay", "gather", tuple(operands), 1), like="decay")


def _cumulative(derivation: _Derivation, step: Step) -> None:
    """Its reverse gathers all roles at once, in `finish`."""


def _pair(derivation: _Derivation, step: Step) -> None:
    """P = x y^T: dx = dP y, dy = dP^T x."""
    x, y = step.operands
    dP, sign = derivation.of(step.result)
    rule = Step("", "apply", (), step.number, step.mask, sign)
    dx, dy = derivation.gradient(x), derivation.gradient(y)
    untouched = _untouched(x.exponent, step.mask)
    if untouched:
        own = scaled = derivation.own(dP, step, untouched)
        if y.scalar:
            scaled = f"{y.scalar}_{own}"
            factors = (Row(y.scalar), Row(own))
            derivation.add(Step(scaled, "scale", factors, step.number, untouched), like=own)
        to_x = Step(dx, "add", (Row(y.base, scalar=scaled),), step.number, untouched)
        to_y = Step(dy, "add", (Row(x.base, scalar=own),), step.number, untouched, transposed=True)
        derivation.late += [(to_x, x.base), (to_y, y.base)]
        rule = replace(rule, mask="strict")
    derivation.add(replace(rule, result=dx, operands=(dP, y), into=x.exponent), like=x.base)
    derivation.add(replace(rule, result=dy, operands=(dP, x), into=y.exponent, transposed=True), like=y.base)


def _untouched(exponent: str, mask: str) -> str:
    """Which pairs of a decayed product no decay touches: tokens with themselves, or with the token before them."""
    if exponent == "<":
        return "neighbour"
    return "own" if exponent == "+" and mask == "inclusive" else ""


def _apply(derivation: _Derivation, step: Step) -> None:
    """z = P y: dP = dz y^T, dy = P^T dz."""
    P, y = step.operands
    dz, sign = derivation.of(step.result, step.into)
    rule = Step(derivation.gradient(y), "apply", (P, dz), step.number, step.mask, sign)
    derivation.add(Step(f"d{P.base}", "pair", (dz, y), step.number, step.mask, sign), like=P.base)
    untouched = _untouched(step.into, step.mask)
    if untouched:
        own = Row(dz.base, scalar=derivation.own(P, step, untouched))
        derivation.late.append(
            (Step(rule.result, "add", (own,), step.number, untouched, transposed=True), y.base)
        )
        rule = replace(rule, mask="strict")
    if step.into:
        seen = Step("seen", "apply", (P, y), step.number, "strict", into=step.into)
        derivation.add(seen, like=step.result)
        derivation.decayed.append((Row("seen", step.into), Row(dz.base)))
    derivation.add(replace(rule, transposed=True, into=y.exponent), like=y.base)


def _invert(derivation: _Derivation, step: Step) -> None:
    """Undone together with the solve that uses it."""


def _solve(derivation: _Derivation, step: Step) -> None:
    """U = (I + A)^-1 z: dz = (I + A)^-T dU, dA = -dz U^T below the diagonal; plus for I - A."""
    inverse, z, A = step.operands
    dU, sign = derivation.of(step.result)
    dz = derivation.gradient(z)
    rows = (Row(dz), Row(step.result))
    derivation.add(Step(dz, "solve", (inverse, dU), step.number, sign=sign, transposed=True), like=z.base)
    derivation.add(
        Step(f"d{A.base}", "pair", rows, step.number, "strict", 1 if step.minus else -1), like=A.base
    )


def _read(derivation: _Derivation, step: Step) -> None:
    """z = x S: dx = dz S^T, dS += x^T dz."""
    x, S = step.operands
    dz, sign = derivation.of(step.result, step.into)
    dx = derivation.gradient(x)
    derivation.add(Step(dx, "project", (dz, S), step.number, sign=sign, into=x.exponent), like=x.base)
    if step.into:
        derivation.add(Step("seen", "read", (x, S), step.number, into=step.into), like=step.result)
    derivation.state_pairs.append((x, dz, sign))


def _update(derivation: _Derivation, step: Step) -> None:
    """S_next = e^(G_end) S + x^T y: dx = y dS_next^T, dy = x dS_next, dS = e^(G_end) dS_next."""
    derivation.state_step = step.number
    dS = Row("dS_next")
    for x, y in zip(step.operands[1::2], step.operands[2::2], strict=True):
        derivation.through_state(Step("", "project", (y, dS), step.number, into=x.exponent), x)
        derivation.through_state(Step("", "read", (x, dS), step.number, into=y.exponent), y)


def _combine(derivation: _Derivation, step: Step) -> None:
    """z = a - b: da = dz, db = -dz, both without a tile of their own."""
    a, b = step.operands
    derivation.alias[a.base] = (f"d{step.result}", 1)
    derivation.alias[b.base] = (f"d{step.result}", step.sign)


RULES: dict[str, Callable[[_Derivation, Step], None]] = {
    "cumulative": _cumulative,
    "pair": _pair,
    "apply": _apply,
    "invert": _invert,
    "solve": _solve,
    "read": _read,
    "update": _update,
    "combine": _combine,
}
