"""Split a tile program into what is parallel over chunks and what has to walk from chunk to chunk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from archc.tiles.program import Step, TileProgram

Phase = Literal["prepare", "walk", "finish"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of a program by phase, each in order; `adds` is set by the order of execution.

    buffers: values that exist for all chunks at once. A value of the walk that only the walk uses is not one.
    """

    prepare: tuple[Step, ...]
    walk: tuple[Step, ...]
    finish: tuple[Step, ...]
    buffers: frozenset[str]


def schedule(program: TileProgram, carried: str, result: str, stored: bool) -> Schedule:
    """Assign each step to a phase.

    Nothing that comes after the decay's gradient has been gathered moves ahead of it.
    prepare: needs no state. walk: `result`, the next state, depends on it, or it reads a carried state that is
    not `stored` for all chunks. finish: the rest. Prepare and finish are parallel over chunks.
    """
    producers: dict[str, list[Step]] = {}
    for step in program.steps:
        producers.setdefault(step.result, []).append(step)

    on_cycle: set[str] = set()
    pending = [result]
    while pending:
        name = pending.pop()
        if name not in on_cycle:
            on_cycle.add(name)
            pending += [row.base for step in producers.get(name, ()) for row in step.operands]

    late: dict[str, int] = {carried: 1}  # the latest phase in which a value is still being added to

    def latest(name: str) -> int:
        if name not in late:
            late[name] = 0
            late[name] = max((phase(step) for step in producers.get(name, ())), default=0)
        return late[name]

    gathered = [index for index, step in enumerate(program.steps) if step.operation == "gather"]
    late_steps = {id(step) for index in gathered for step in program.steps[index:]}

    def phase(step: Step) -> int:
        if id(step) in late_steps:
            return 2
        operands = [row.base for row in step.operands]
        earliest = max((latest(name) for name in operands), default=0)
        if step.operation == "update":
            return 1
        if earliest == 0:
            return 0
        if step.result in on_cycle or (carried in operands and not stored):
            return 1
        return 2

    phases = {id(step): phase(step) for step in program.steps}
    ordered = sorted(program.steps, key=lambda step: phases[id(step)])
    defined: set[str] = set()
    split: tuple[list[Step], list[Step], list[Step]] = ([], [], [])
    for step in ordered:
        split[phases[id(step)]].append(replace(step, adds=step.result in defined))
        defined.add(step.result)
    outside = split[0] + split[2]
    buffers = {step.result for step in outside} | {row.base for step in outside for row in step.operands}
    return Schedule(tuple(split[0]), tuple(split[1]), tuple(split[2]), frozenset(buffers))
