"""Search tiles whose kernels keep everything in registers, and print them as rows for specs/targets.

`python scripts/propose_tiles.py TARGET [--classes CLASS...] [--search FOLDER]`: FOLDER holds another Triton, as
`pip install --no-deps --target FOLDER triton==3.6.0` leaves it. Nothing is timed: of tiles that fit, the one with the
most value columns is taken, since it reads keys and queries least often. Rows that there are: `screen_rows.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kernel_table import CLASSES, model, recurrence_kernels

from archc.kernels import compile as compiling
from archc.kernels.compile import triton_version, verify
from archc.kernels.fit import Fit
from archc.kernels.kernel import Kernel
from archc.kernels.report import recurrence_kinds
from archc.kernels.targets import Target, load_target
from archc.tiles.kind import RecurrenceKind

FEW = 32  # bytes of local memory that no search is worth
SIZES = {"wgmma": (64, 128, 256), "tcgen05": (64, 128, 256)}

# Columns, warps, stages: the best first. A matrix unit with rows of 64 has no use for fewer columns.
WALKS = {
    "wgmma": [(128, 8, 1), (64, 4, 1), (64, 4, 2), (64, 8, 1), (64, 8, 2)],
    "tcgen05": [(128, 4, 1), (128, 8, 1), (64, 4, 1), (64, 8, 1)],
    "mma": [(64, 4, 1), (64, 8, 1), (32, 4, 1), (32, 8, 1), (16, 4, 1)],
    "mfma": [(64, 4, 1), (64, 8, 1), (32, 4, 1), (32, 8, 1)],
}
OTHERS = [(4, 1), (8, 1), (16, 1)]  # warps, stages of a kernel without value columns
SECONDS = 60.0  # a kernel that takes longer to compile spills without end


@dataclass
class Cell:
    """One kernel of one class at one size: what is still to be tried, and the best so far."""

    kind: RecurrenceKind
    name: str
    size: int
    role: str
    left: list[tuple[int, ...]]
    best: tuple[int, tuple[int, ...]] | None = None
    said: dict[tuple[int, ...], str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        return not self.left or (self.best is not None and self.best[0] <= FEW)

    def row(self, tile: tuple[int, ...]) -> dict[str, Any]:
        names = ("columns", "num_warps", "num_stages")[-len(tile) :]
        return {"role": self.role, **dict(zip(names, tile))}

    def learn(self, tile: tuple[int, ...], fit: Fit) -> None:
        stack = fit.found.stack if fit.found is not None else 0
        self.said[tile] = f"{stack}" if fit.fits else fit.reason
        if fit.fits and (self.best is None or stack < self.best[0]):
            self.best = (stack, tile)


def search(target: Target, classes: Sequence[str], folders: Sequence[Path]) -> list[Cell]:
    """Every cell with its best tile."""
    cells = []
    for name in classes:
        for size in SIZES.get(target.matrix_instruction, (64, 128)):
            (kind,) = recurrence_kinds(model(name, size, size)).values()
            walks = [tile for tile in WALKS[target.matrix_instruction] if tile[0] <= size]
            cells.append(Cell(kind, name, size, "walk", walks))
            others = OTHERS[1:] + OTHERS[:1] if kind.core().decay == "key" else list(OTHERS)
            cells.append(Cell(kind, name, size, "prepare", others))
    while open_cells := [cell for cell in cells if not cell.settled]:
        tried: list[tuple[Cell, tuple[int, ...], Kernel]] = []
        for cell in open_cells:
            tile = cell.left.pop(0)
            if kernel := _kernel(cell, tile, target):
                tried.append((cell, tile, kernel))
            else:
                cell.left = []  # the class has no such kernel
        fits = verify([kernel for *_, kernel in tried], target, _tell, search=folders)
        for (cell, tile, _), fit in zip(tried, fits):
            cell.learn(tile, fit)
    return cells


def _kernel(cell: Cell, tile: tuple[int, ...], target: Target) -> Kernel | None:
    """The cell's kernel when it is cut this way; what the other kernels get does not matter."""
    columns = 64 if target.matrix_instruction in SIZES else 32
    others = {"columns": columns, "num_warps": 4, "num_stages": 1}
    rows = [cell.row(tile), *({"role": role} | others for role in ("prepare", "walk") if role != cell.role)]
    kernels = recurrence_kernels(model(cell.name, cell.size, cell.size), replace(target, tiles=tuple(rows)))
    return next((kernel for kernel in kernels if kernel.role == cell.role), None)


def rows(cells: Sequence[Cell], version: str) -> list[str]:
    """Rows for the target's file: those of one size first, then that of 128 for every other."""
    lines = []
    for size in (64, 256, 128):
        for cell in cells:
            if cell.size != size or cell.best is None:
                continue
            parts = [f"role: {cell.role}", f"decay: {_decays(cell)}", f"erase: {cell.kind.core().erase}"]
            sizes = {64: "[16, 32, 48, 64]", 256: "[192, 256]"}.get(size)
            parts += [f"K: {sizes}"] if sizes else []
            parts += [f"{name}: {value}" for name, value in list(cell.row(cell.best[1]).items())[1:]]
            line = f"  - {{{', '.join(parts)}, screened: [{version}]}}"
            lines += [line] if line not in lines else []
    return lines


def _decays(cell: Cell) -> str:
    decay = cell.kind.core().decay
    return "[constant, head]" if decay == "head" else decay


def _tell(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Search, and print rows to standard output and everything that was tried to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--classes", nargs="*", default=list(CLASSES))
    parser.add_argument("--search", type=Path, action="append", default=[])
    given = parser.parse_args()
    compiling.SECONDS = SECONDS
    target = load_target(given.target)
    cells = search(target, given.classes, given.search)
    for cell in cells:
        print(cell.name, cell.size, cell.role, cell.said, file=sys.stderr)
    print("\n".join(rows(cells, triton_version(given.search) or "")))


if __name__ == "__main__":
    main()
