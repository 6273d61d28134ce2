"""What the kernels of a recurrence do, counted in its tile program: bytes, FLOP, exponentials, the longest chain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

from archc.kernels.bounds import Work
from archc.kernels.elementwise import work_by_token
from archc.tiles.costs import _exponentials, _flops, count
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Step, TileProgram
from archc.tiles.reverse import reverse
from archc.tiles.schedule import schedule
from archc.tiles.triton_lines import prepared

_CUMULATIVE = ("decay", "G", "beta")  # rows that are float32 whatever the model's type


def work_of(
    kind: RecurrenceKind, role: str, K: int, V: int, columns: int | None = None, itemsize: int = 2
) -> Work | None:
    """The work of one kernel of a class, per token and head of the state; None for a role that has no count.

    role: "prepare" and "walk" of the forward, "prepare_reverse" and "reverse" of the backward, "decode"; "walk_back" of
    a class that walks token by token. columns: values that a program of a walk has; all of them by default. itemsize:
    bytes of an element of q, k and v.
    """
    form = form_of(kind).form
    if form != "chunk":
        return work_by_token(kind, role, K, V, columns, itemsize) if form == "scan" else None
    if role == "decode":
        costs = count(kind, K, V, itemsize=itemsize).decode
        return Work(costs.bytes, costs.flops, costs.exponentials, 0.0)
    ahead = forward(kind)
    if role in ("prepare", "walk"):
        program, state = ahead, "S_next"
        made = {(step.result, step.operation) for step in prepared(kind, ahead)}
        first = [step for step in ahead.steps if (step.result, step.operation) in made]
        then = [step for step in ahead.steps if (step.result, step.operation) not in made]
    elif role in ("prepare_reverse", "reverse"):
        program, state = reverse(ahead), "dS"
        plan = schedule(program, "dS_next", state, stored=False)
        first, then = list(plan.prepare), [*plan.walk, *plan.finish]
    else:
        return None
    sizes = {"C": kind.chunk, "K": K, "V": V}
    walks = role in ("walk", "reverse")
    steps, others = (then, first) if walks else (first, then)
    if not steps:
        return Work(0.0, 0.0, 0.0, 0.0)
    C = kind.chunk
    share = (columns or V) / V
    waiting = _leading_to(state, then) if walks else []
    own = replace(program, steps=tuple(steps))
    return Work(
        _bytes(steps, others, program, sizes, itemsize) / C,
        sum(_flops(step, program, sizes) for step in steps) / C,
        _exponentials(own, kind.core().decay, sizes) / C,
        sum(_flops(step, program, sizes) for step in waiting) / C * share,
    )


def _leading_to(state: str, steps: Sequence[Step]) -> list[Step]:
    """The steps of a walk that the next state depends on; the others need not be done before the next chunk."""
    found: list[Step] = []
    wanted = {state}
    for step in reversed(steps):
        if step.result in wanted:
            found.append(step)
            wanted |= {row.base for row in step.operands}
    return found


def _bytes(
    steps: Iterable[Step], others: Iterable[Step], program: TileProgram, sizes: dict[str, int], itemsize: int
) -> float:
    """What these steps read that they did not make, and what they make that others read or that is a result."""
    made = {step.result for step in steps}
    read = {row.base for step in steps for row in step.operands}
    read |= {row.scalar for step in steps for row in step.operands if row.scalar}
    wanted = {row.base for step in others for row in step.operands}
    last = {program.output, *(name for name in made if name.startswith("d") and name[1:] in program.inputs)}
    moved = (read - made) | (made & (wanted | last))
    return sum(_size(name, program, sizes, itemsize) for name in moved)


def _size(name: str, program: TileProgram, sizes: dict[str, int], itemsize: int) -> float:
    """Bytes of one value of a chunk. States stay on the chip."""
    axes = program.axes.get(name, "")
    if not axes or "C" not in axes:
        return 0.0
    return (4 if name in _CUMULATIVE else itemsize) * prod(sizes[axis] for axis in axes)
