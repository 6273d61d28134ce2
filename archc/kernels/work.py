"""What the kernels of a recurrence do, counted in its tile program: bytes, FLOP, exponentials, the longest chain."""

from __future__ import annotations

from dataclasses import replace

from archc.kernels.bounds import Work
from archc.kernels.bytes import planned
from archc.kernels.elementwise import work_by_token
from archc.tiles.costs import _exponentials, _flops, count
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import leading_to
from archc.tiles.triton_lines import prepared


def work_of(
    kind: RecurrenceKind,
    role: str,
    K: int,
    V: int,
    columns: int | None = None,
    itemsize: int = 2,
    halves: bool = False,
) -> Work | None:
    """The work of one kernel of a class, per token and head of the state; None for a role that has no count.

    role: "prepare" and "walk" of the form over chunks, "decode"; "walk_back" of a class that walks token by token.
    columns: values that a program of a walk has; all of them by default. itemsize: bytes of an element of q, k and v.
    halves: whether the walk has its state in two halves.
    """
    form = form_of(kind).form
    if form != "chunk":
        return work_by_token(kind, role, K, V, columns, itemsize) if form == "scan" else None
    if role == "decode":
        costs = count(kind, K, V, itemsize=itemsize).decode
        return Work(costs.bytes, costs.flops, costs.exponentials, 0.0)
    if role not in ("prepare", "walk"):
        return None
    program = forward(kind)
    made = {(step.result, step.operation) for step in prepared(kind, program, halves)}
    walks = role == "walk"
    steps = [step for step in program.steps if ((step.result, step.operation) in made) != walks]
    if not steps:
        return Work(0.0, 0.0, 0.0, 0.0)
    sizes = {"C": kind.chunk, "K": K, "V": V}
    C, share = kind.chunk, (columns or V) / V
    waiting = leading_to("S_next", steps) if walks else []
    own = replace(program, steps=tuple(steps))
    return Work(
        planned(kind, K, V, itemsize, halves=halves).get(role, 0.0),
        sum(_flops(step, program, sizes) for step in steps) / C,
        _exponentials(own, kind.core().decay, sizes) / C,
        sum(_flops(step, program, sizes) for step in waiting) / C * share,
    )
