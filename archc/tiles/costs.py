"""Count what a recurrence costs by reading its tile programs."""

from __future__ import annotations

from dataclasses import dataclass

from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.reverse import reverse


@dataclass(frozen=True, slots=True)
class Cost:
    """Per token and head of the state. FLOPs count a multiplication and an addition as two.

    bytes: inputs read once and outputs written once, the bound of any schedule; states stay on the chip.
    """

    flops: float
    bytes: float
    exponentials: float


@dataclass(frozen=True, slots=True)
class Costs:
    """The three computations of one class, and its state in bytes per head and sequence."""

    forward: Cost
    backward: Cost
    decode: Cost
    state_bytes: int


def count(
    kind: RecurrenceKind, K: int, V: int, chunk: int | None = None, itemsize: int = 2, queries: int = 1
) -> Costs:
    """Costs of a class at sizes K and V. itemsize: bytes of an element of q, k and v; decays are float32.

    queries: heads of q for each head of the state; over chunks each of them is a token of its own. With factors the
    counts are per factor. Raises ValueError, with the reason, for a class without a form.
    """
    verdict = form_of(kind)
    if verdict.form == "error":
        raise ValueError(verdict.reason)
    C = chunk or kind.chunk
    core = kind.core()
    if kind.normalize != "none":
        V += 1
    sizes = {"C": C, "K": K, "V": V}
    decay_size = {"none": 0, "head": 1, "key": K, "value": V, "elementwise": V if kind.decay_rate else K * V}
    decay_bytes = 4 * decay_size[core.decay]
    vectors = {"none": 0, "delta": 1, "pair": 2 * K}[core.erase]
    inputs = itemsize * (queries * K + K + V + vectors) + decay_bytes
    output = itemsize * V * queries
    state = 4 * K * V
    decayed_elements = {"head": 1, "key": K, "value": V, "elementwise": K * V}.get(core.decay, 0)
    state_flops = {"none": 0, "delta": 3, "pair": 2}[core.erase] * V + 2 * K * V * (
        2 + {"none": 0, "delta": 1, "pair": 2}[core.erase]
    )
    decode = Cost(
        state_flops + (K * V if core.decay != "none" else 0) + 2 * K * V * (queries - 1),
        inputs + output + 2 * state,
        decayed_elements,
    )
    if verdict.form == "scan":
        once = Cost(5.0 * K * V * queries, inputs + output, K * V * queries)
        twice = Cost(14.0 * K * V * queries, 2 * inputs + output, K * V * queries)
        return Costs(once, twice, decode, state)
    program = forward(kind)
    ahead = sum(_flops(step, program, sizes) for step in program.steps) / C
    backward = reverse(program)
    behind = sum(_flops(step, backward, sizes) for step in backward.steps) / C
    again = {row.base for step in backward.steps for row in step.operands} & {"qk", "rk", "qw"}
    behind += sum(_flops(step, program, sizes) for step in program.steps if step.result in again) / C
    exponentials = _exponentials(program, core.decay, sizes) / C
    return Costs(
        Cost(queries * ahead, inputs + output, queries * exponentials),
        Cost(queries * behind, 2 * inputs + output, queries * exponentials),
        decode,
        state,
    )


def _flops(step: Step, program: TileProgram, sizes: dict[str, int]) -> float:
    """FLOPs of one step on one chunk; a triangle of scores is counted as the whole square that is computed."""
    C, K, V = sizes["C"], sizes["K"], sizes["V"]

    def width(row: Row) -> int:
        return sizes[program.axes[row.base][1]]

    match step.operation:
        case "pair":
            return 2.0 * C * C * width(step.operands[0])
        case "apply":
            return 2.0 * C * C * width(step.operands[1])
        case "solve":
            return 2.0 * C * C * V
        case "invert":
            return C**3 / 3
        case "read" | "project":
            return 2.0 * C * K * V
        case "update":
            return 2.0 * C * K * V * (len(step.operands) // 2) + K * V
        case "contract" if step.result == "anchor":
            return 2.0 * K * V
        case "contract":
            return 2.0 * C * width(step.operands[0])
        case "gather":
            return sum(2.0 * C * width(row) for row in step.operands[1::2])
        case "combine":
            return 2.0 * C * sizes[program.axes[step.result][1]]
        case _:
            return float(C)


def _exponentials(program: TileProgram, decay: str, sizes: dict[str, int]) -> float:
    """Exponentials of one chunk: factors of rows, of the whole chunk, and between pairs."""
    if decay == "none":
        return 0.0
    C = sizes["C"]
    width = {"head": 1, "key": sizes["K"], "value": sizes["V"]}[decay]
    marks = {row.exponent for step in program.steps for row in step.operands if row.exponent}
    marks |= {step.into for step in program.steps if step.into}
    total = float(len(marks) * C * width + width)
    pairs = {
        tuple(row.exponent for row in step.operands)
        for step in program.steps
        if step.operation in ("pair", "apply") and any(row.exponent for row in step.operands)
    }
    if decay == "head":
        return total + len({pair[0] for pair in pairs}) * C * (C + 1) / 2
    # Halving: every level takes one factor for each row of the chunk.
    levels = C.bit_length() - 1
    return total + len(pairs) * levels * C * width
