"""The layers of a model as runs of equal ones: a head, a cycle with its number of repeats, a tail."""

from __future__ import annotations

from archc.graph.types import Run


def compress(
    keys: list[str], period: int = 0
) -> tuple[tuple[Run, ...], tuple[Run, ...], int, tuple[Run, ...]]:
    """Layers as runs: a head, a cycle with its number of repeats, a tail.

    `period`: layers after which the spec itself begins anew, 0 where it lists them. A head of at most one such
    group may differ (its conditions on `site` or `layer` were decided otherwise); the rest must repeat.
    """
    for start in range(period + 1) if period else ():
        rest = keys[start:]
        if len(rest) >= period and all(key == rest[index % period] for index, key in enumerate(rest)):
            shortest = _shortest(rest[:period])
            repeats, left = divmod(len(rest), len(shortest))
            return (
                tuple(_runs(keys[:start])),
                tuple(_runs(shortest)),
                repeats,
                tuple(_runs(rest[-left:] if left else [])),
            )
    return _fewest_runs(keys)


def _shortest(group: list[str]) -> list[str]:
    """The shortest list that the group repeats."""
    for size in range(1, len(group) + 1):
        if len(group) % size == 0 and group == group[:size] * (len(group) // size):
            return group[:size]
    return group


def _fewest_runs(keys: list[str]) -> tuple[tuple[Run, ...], tuple[Run, ...], int, tuple[Run, ...]]:
    """The description of listed layers with the fewest runs."""
    runs = _runs(keys)
    best: tuple[int, tuple[tuple[Run, ...], tuple[Run, ...], int, tuple[Run, ...]]] = (
        len(runs),
        (tuple(runs), (), 0, ()),
    )
    for head in range(min(len(runs), 4)):
        rest = keys[sum(run.count for run in runs[:head]) :]
        for count in range(1, min(len(runs) - head, 16) + 1):
            size = sum(run.count for run in runs[head : head + count])
            repeats = 1
            while rest[repeats * size : (repeats + 1) * size] == rest[:size]:
                repeats += 1
            tail = _runs(rest[repeats * size :])
            cost = head + count + len(tail)
            if repeats > 1 and cost < best[0]:
                best = (cost, (tuple(runs[:head]), tuple(runs[head : head + count]), repeats, tuple(tail)))
    return best[1]


def _runs(keys: list[str]) -> list[Run]:
    found: list[Run] = []
    for key in keys:
        if found and found[-1].module == key:
            found[-1] = Run(key, found[-1].count + 1)
        else:
            found.append(Run(key, 1))
    return found
