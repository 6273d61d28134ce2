"""From a sweep file to its points, each resolved, matched and counted."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from archc.spec.diagnostics import Diagnostic, Reporter, SpecError
from archc.sweeps.evaluate import Guesses, Point, evaluate
from archc.sweeps.points import Candidate, candidates
from archc.sweeps.read import Source, read_sweep
from archc.sweeps.types import Sweep

LEAST = 8  # points that one process takes at once: the first of them begins without a guess
Tell = Callable[[int, int], None]  # points done, points in all


@dataclass(frozen=True, slots=True)
class Study:
    """A whole sweep. `axes` are its names in order, `tokens` the lengths at which costs were counted."""

    name: str
    title: str
    source: str
    axes: tuple[str, ...]
    tokens: tuple[int, ...]
    points: tuple[Point, ...]
    combinations: int  # of values; more than points where an axis makes no difference or `where` skips

    @property
    def errors(self) -> list[Diagnostic]:
        """Every mistake once, in the order of their places, with the points at which it stands.

        Where a mistake has other numbers at other points, those of the first one are shown.
        """
        found: dict[tuple[str, object], tuple[Diagnostic, list[str]]] = {}
        for point in self.points:
            for each in point.errors:
                found.setdefault((each.code, each.span), (each, []))[1].append(point.name)
        noted = []
        for each, names in found.values():
            where = f"at the point{'s' if names[1:] else ''} {', '.join(names[:5])}"
            where += f" and {len(names) - 5} more" if names[5:] else ""
            noted.append(replace(each, note="; ".join(filter(None, [each.note, where]))))
        return sorted(noted, key=lambda each: each.span)


def study(
    source: Source,
    sources: MutableMapping[str, str] | None = None,
    tell: Tell | None = None,
    processes: int = 1,
) -> Study:
    """Resolve, match and count every point of a sweep: a path, or a mapping of the same content.

    `sources` receives the text of every file that was read. With `processes` above one, points are counted in so
    many at once where the system can fork; the result is the same. Raises SpecError for mistakes of the sweep itself;
    those of single points are in the points.
    """
    from archc.operations.registry import add_project_operations

    report = Reporter()
    texts: MutableMapping[str, str] = {} if sources is None else sources
    add_project_operations(
        Path.cwd() if isinstance(source, Mapping) else Path(source).absolute().parent, report
    )
    sweep = read_sweep(source, report, texts)
    found = candidates(sweep, report) if sweep is not None and not report.diagnostics else []
    if sweep is None or report.diagnostics:
        raise SpecError(sorted(report.diagnostics, key=lambda each: each.span))
    points: list[Point] = []
    for some in _evaluated(sweep, found, processes):
        points += some
        if tell is not None:
            tell(len(points), len(found))
    combinations = 1
    for axis in sweep.axes:
        combinations *= len(axis.values)
    return Study(
        sweep.name,
        sweep.title,
        sweep.source,
        tuple(axis.name for axis in sweep.axes),
        sweep.tokens,
        tuple(points),
        combinations,
    )


def _evaluated(sweep: Sweep, found: list[Candidate], processes: int) -> Iterator[list[Point]]:
    """The points of all candidates, a few at a time, in their order."""
    size = max(LEAST, -(-len(found) // (2 * processes)))
    if processes > 1 and len(found) > size and _can_fork():
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        # Children inherit the sweep with everything that was read; what they send back is plain data.
        pieces = [found[start : start + size] for start in range(0, len(found), size)]
        with ProcessPoolExecutor(
            min(processes, len(pieces)), get_context("fork"), _inherit, (sweep, pieces)
        ) as pool:
            yield from pool.map(_piece, range(len(pieces)))
        return
    guesses: Guesses = []
    for candidate in found:
        yield [evaluate(sweep, candidate, guesses)]


def _can_fork() -> bool:
    """Whether this process can be copied safely: one thread of its own, and none of torch's."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


_inherited: list[tuple[Sweep, list[list[Candidate]]]] = []  # in a child: what it is to work on


def _inherit(sweep: Sweep, pieces: list[list[Candidate]]) -> None:
    _inherited.append((sweep, pieces))


def _piece(index: int) -> list[Point]:
    sweep, pieces = _inherited[-1]
    guesses: Guesses = []
    return [evaluate(sweep, candidate, guesses) for candidate in pieces[index]]
