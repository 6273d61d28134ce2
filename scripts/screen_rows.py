"""Compile what every row of a target's tiles is taken for, and print of each row whether it fits: what `screened` says.

`python scripts/screen_rows.py TARGET [ROW...] [--search FOLDER] [--json docs/screened.json]`: rows are counted from 1.
FOLDER holds another Triton, as `pip install --no-deps --target FOLDER triton==3.6.0` leaves it. Every class that takes
a row is compiled dense and packed at K = V = 128, or at 192 and 256 or at narrower sizes where the row is not for 128.
The file gets what came out: target, version, row, figures; rows that nothing is taken for are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kernel_table import CLASSES, KEY, PAIR, model, recurrence_kernels

from archc.graph.types import Graph
from archc.kernels.compile import triton_version, verify
from archc.kernels.fit import Fit
from archc.kernels.kernel import Kernel
from archc.kernels.recurrence import tile_facts
from archc.kernels.report import recurrence_kinds
from archc.kernels.targets import Target, load_target

STEP = {
    "decay": "-exp(param(rate, [n_heads, key_size, value_size])) * softplus(linear(x, [n_heads, value_size]))"
}
ENTRIES = {"decay": "logsigmoid(linear(x, [n_heads, key_size, value_size]))"}
# Arguments of the classes that docs/kernels.md does not have.
OTHERS: dict[str, dict[str, str]] = {
    "key_decay_erase_previous": KEY | PAIR,
    "elementwise_decay": ENTRIES,
    "elementwise_decay_rate": STEP,
}
# Sizes that a row is screened at: those of the first group of which it is taken for any.
GROUPS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((128, 128),),
    ((192, 192), (256, 256)),
    ((64, 64), (96, 96)),
    ((64, 96), (64, 128)),
    ((192, 64), (256, 64)),
    ((64, 192), (128, 256)),
)
BY_ENTRY = ((16, 2048),)  # a state of few numbers for each of many channels, where each entry decays
ROLES = {"walk_ahead": "walk", "walk_back_ahead": "walk_back"}  # what has no rows of its own


@dataclass
class Screened:
    """A row, and what came out of the kernels that are cut by it: (class, K, V, kernel) -> fit."""

    row: Mapping[str, Any]
    found: dict[tuple[str, int, int, str], Fit] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return bool(self.found) and all(fit.fits for fit in self.found.values())

    def facts(self) -> dict[str, Any]:
        """The most bytes of local and of shared memory, and what does not fit."""
        figures = [fit.found for fit in self.found.values() if fit.found is not None]
        return {
            "kernels": len(self.found),
            "fits": self.fits,
            "stack": max((each.stack for each in figures), default=0),
            "shared": max((each.shared for each in figures), default=0),
            "refused": {
                f"{name} {K} x {V} {title}": fit.verdict
                for (name, K, V, title), fit in self.found.items()
                if not fit.fits
            },
        }


def graph_of_class(name: str, K: int, V: int) -> Graph:
    """A model whose only recurrence is of a class."""
    return model(name, K, V, OTHERS.get(name))


def taken(target: Target, name: str, K: int, V: int) -> Iterator[tuple[int, Kernel]]:
    """The kernels of a class at one size, each with the index of the row that cuts it."""
    graph = graph_of_class(name, K, V)
    (kind,) = recurrence_kinds(graph).values()
    facts = tile_facts(kind, K, V)
    for kernel in recurrence_kernels(graph, target):
        role = ROLES.get(kernel.role, kernel.role)
        for index, row in enumerate(target.tiles):
            if replace(target, tiles=(row,)).tile(role, **facts) is not None:
                yield index, kernel
                break


def plan(
    target: Target, rows: Sequence[int], classes: Sequence[str] = (*CLASSES, *OTHERS)
) -> list[tuple[int, tuple[str, int, int, str], Kernel]]:
    """What is compiled for these rows: row, what stands beside the figures, kernel."""
    found = []
    for name in classes:
        open_rows = set(rows)
        for group in (*GROUPS, *([BY_ENTRY] if name.startswith("elementwise") else [])):
            met = [(index, K, V, kernel) for K, V in group for index, kernel in taken(target, name, K, V)]
            met = [each for each in met if each[0] in open_rows]
            found += [(index, (name, K, V, _title(kernel)), kernel) for index, K, V, kernel in met]
            open_rows -= {index for index, *_ in met}
    return found


def _title(kernel: Kernel) -> str:
    return f"{kernel.name} ({kernel.case})" if kernel.case else kernel.name


def screened(target: Target, rows: Sequence[int], folders: Sequence[Path]) -> dict[int, Screened]:
    """Every one of these rows with what came out."""
    planned = plan(target, rows)
    fits = verify([kernel for *_, kernel in planned], target, _tell, search=folders)
    found = {index: Screened(target.tiles[index]) for index in rows}
    for (index, key, _), fit in zip(planned, fits):
        found[index].found[key] = fit
    return found


def _tell(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main() -> None:
    """Compile, and print a line for each row, with a further one for each kernel that does not fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("rows", nargs="*", type=int)
    parser.add_argument("--search", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same there")
    given = parser.parse_args()
    target = load_target(given.target)
    rows = [each - 1 for each in given.rows] or list(range(len(target.tiles)))
    results = screened(target, rows, given.search)
    print(f"{target.name}, Triton {triton_version(given.search)}")
    for index, result in results.items():
        facts = result.facts()
        verdict = "not taken" if not result.found else "fits" if result.fits else "does not fit"
        print(
            f"{index + 1}. {text_of(result.row)}: {verdict}, {facts['stack']} B, {facts['shared']:,} B shared"
        )
        print("".join(f"     {what}: {why}\n" for what, why in facts["refused"].items()), end="")
    if given.json is not None:
        record(given.json, target, triton_version(given.search) or "", results.values())


def record(file: Path, target: Target, version: str, results: Iterable[Screened]) -> None:
    """Put what came out into a file of such results; rows that are no more, or not taken any more, are dropped."""
    whole = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known = whole.setdefault(target.name, {}).get(version, {})
    for result in results:
        known.pop(text_of(result.row), None)
        if result.found:
            known[text_of(result.row)] = result.facts()
    there = [text_of(row) for row in target.tiles]
    whole[target.name][version] = {row: known[row] for row in there if row in known}
    text = json.dumps({name: whole[name] for name in sorted(whole)}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def text_of(row: Mapping[str, Any]) -> str:
    """A row as its file has it, without the versions that it was screened with."""
    return ", ".join(f"{key}: {_value(value)}" for key, value in row.items() if key != "screened")


def _value(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
