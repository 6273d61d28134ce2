"""Derive the backward of a tile program by running it in reverse, one rule for each operation.

The gradient `dx` of a row in a role is taken with the role's decay stripped: for `y = f(x e^E)` it is the
gradient with respect to x, `e^E` included. The decay's own gradient is then `x * dx`, with the sign of E, for
every role at once, and what reaches `G_end` through the state is `<S_next, dS_next>`, because the next state is
homogeneous of degree one in `e^(G_end)`.
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

    def finish(self) -> TileProgram:
        """Close the state's cycle and bring the gradients of the roles together."""
        decayed = "decay" in self.program.inputs
        if decayed:
            self.add(Step("anchor", "contract", (Row("S_next"), Row("dS_next")), self.state_step), like="G")
            self.axes["anchor"] = self.axes["G"].replace("C", "") or "1"
        rows = [row for left, right, _ in self.state_pairs for row in (left, right)]
        signs = tuple(sign for _, _, sign in self.state_pairs)
        self.add(Step("dS", "update", (Row("dS_next"), *rows), self.state_step, signs=signs), like="dS")
        inputs = {base: roles for base, roles in self.roles.items() if base in self.program.inputs}
        for base, roles in inputs.items():
            for role in roles:
                if role.scalar:
                    parts = (Row(base), Row(self.gradient(role)))
                    self.add(Step(f"d{role.scalar}", "contract", parts, 0), like=role.scalar)
        if decayed:
            self._decay()
        for base, roles in inputs.items():
            if len(roles) > 1:
                received = tuple(Row(self.gradient(role), scalar=role.scalar) for role in roles)
                self.add(Step(f"d{base}", "combine", received, 0), like=base)
        names = (*self.program.inputs, "do", "S", "S_next")
        return TileProgram(tuple(self.steps), self.axes, names, "dS_next", "dS")

    def _decay(self) -> None:
        """Every row with a decay gives a part of the decay's gradient."""
        operands: list[Row] = [Row("anchor")]
        for step in self.program.steps:
            if step.result == self.program.output and step.into and not step.adds:
                operands += [Row(step.result, step.into), Row(f"d{step.result}")]
        for roles in self.roles.values():
            for role in roles:
                if role.exponent:
                    operands += [role, Row(self.gradient(role))]
        self.add(Step("ddecay", "gather", tuple(operands), 1), like="decay")


def _cumulative(derivation: _Derivation, step: Step) -> None:
    """Its reverse gathers all roles at once, in `finish`."""


def _pair(derivation: _Derivation, step: Step) -> None:
    """P = x y^T: dx = dP y, dy = dP^T x."""
    x, y = step.operands
    dP, sign = derivation.of(step.result)
    rule = Step("", "apply", (), step.number, step.mask, sign)
    dx, dy = derivation.gradient(x), derivation.gradient(y)
    derivation.add(replace(rule, result=dx, operands=(dP, y), into=x.exponent), like=x.base)
    derivation.add(replace(rule, result=dy, operands=(dP, x), into=y.exponent, transposed=True), like=y.base)


def _apply(derivation: _Derivation, step: Step) -> None:
    """z = P y: dP = dz y^T, dy = P^T dz."""
    P, y = step.operands
    dz, sign = derivation.of(step.result, step.into)
    rule = Step(derivation.gradient(y), "apply", (P, dz), step.number, step.mask, sign)
    derivation.add(Step(f"d{P.base}", "pair", (dz, y), step.number, step.mask, sign), like=P.base)
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
    derivation.state_pairs.append((x, dz, sign))


def _update(derivation: _Derivation, step: Step) -> None:
    """S_next = e^(G_end) S + x^T y: dx = y dS_next^T, dy = x dS_next, dS = e^(G_end) dS_next."""
    derivation.state_step = step.number
    dS = Row("dS_next")
    for x, y in zip(step.operands[1::2], step.operands[2::2], strict=True):
        dx, dy = derivation.gradient(x), derivation.gradient(y)
        derivation.add(Step(dx, "project", (y, dS), step.number, into=x.exponent), like=x.base)
        derivation.add(Step(dy, "read", (x, dS), step.number, into=y.exponent), like=y.base)


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
