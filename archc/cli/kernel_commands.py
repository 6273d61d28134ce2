"""The command that compiles a model's kernels without a GPU: kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from archc.cli.answers import INPUT, answering, print_diagnostics, print_json
from archc.cli.sources import spec_path
from archc.cli.spec_commands import Json, SpecArgument

if TYPE_CHECKING:
    from rich.table import Table

    from archc.kernels.report import KernelsReport
    from archc.kernels.targets import Target


def kernels(
    spec: SpecArgument,
    target: Annotated[str, typer.Option("--target", "-t", help="The GPU.")] = "h100",
    as_json: Json = False,
) -> None:
    """Compile a model's kernels for a GPU: whether each fits, what it uses, what bounds its time from below."""
    path = spec_path(spec)
    with answering(as_json):
        from archc.kernels.targets import load_target, target_names

        if target not in target_names():
            raise typer.BadParameter(f"there is no target {target!r}; targets: {', '.join(target_names())}")
        from archc.kernels.compile import verify
        from archc.kernels.fit import misfits
        from archc.kernels.plan import kernels_of
        from archc.kernels.report import report
        from archc.pipeline import graph_of

        gpu = load_target(target)
        graph = graph_of(path, target=gpu)
        planned = kernels_of(graph, gpu)
        with compiling() as progress:
            fits = verify(planned, gpu, progress) if planned else []
        found = report(graph, planned, fits, gpu)
        errors = misfits(fits, gpu)
        if as_json:
            print_json(found)
        elif not planned:
            print(f"{path} has no kernels for {gpu.title}: everything runs in its torch form")
        else:
            from rich.console import Console

            # A pipe has no width: then every kernel stays on one line.
            width = None if sys.stdout.isatty() else 240
            Console(width=width, highlight=False).print(kernel_table(found, gpu))
            print(
                f"{gpu.title}, Triton {found.triton}. Bounds in ps for each token and head, the largest with a star; "
                "a bound is not a time."
            )
        if not as_json:
            for line in found.torch_forms:
                print(line)
        if errors:
            if not as_json:  # there they stand with their kernels
                print_diagnostics(errors, as_json=False, to=sys.stderr)
            raise typer.Exit(INPUT)


@contextmanager
def compiling() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar for `verify` on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("compiling kernels"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def kernel_table(found: KernelsReport, target: Target) -> Table:
    """A row for each kernel."""
    from rich.table import Table

    heads = ["kernel", "registers", "stack", "spills", "shared", target.matrix_instruction]
    heads += ["bytes", "FLOP", "exponentials", "chain", "fits"]
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in found.kernels:
        file, used = row.fit.file.removesuffix("_kernels.py"), row.fit.found
        cells = ["-"] * 5
        if used is not None:
            counts = (used.registers, used.stack, used.spills, used.shared, sum(used.matrix.values()))
            cells = [f"{count:,}" for count in counts]
        bounds = ["-"] * 4
        if row.bounds is not None:
            names = ("bytes", "flops", "exponentials", "chain")
            bounds = [_bound(getattr(row.bounds, name), name == row.binding) for name in names]
        table.add_row(f"{file}.{row.fit.title}", *cells, *bounds, "yes" if row.fits else "no")
    return table


def _bound(seconds: float | None, binds: bool) -> str:
    """Picoseconds, or a mark where the target's rate is not known."""
    return "?" if seconds is None else f"{seconds * 1e12:,.1f}{'*' if binds else ''}"
