"""The command that compares many models: sweep."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from archc.cli.answers import INPUT, answering, print_diagnostics, print_json, warn
from archc.cli.sources import spec_path
from archc.cli.spec_commands import Json


def sweep(
    file: Annotated[
        str, typer.Argument(metavar="SWEEP", help="A sweep file, or the name of a packaged sweep.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the spec of every point into this folder.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that were edited by hand.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave files that were edited by hand as they are.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Answer in CSV, a line for each length.")] = False,
    as_json: Json = False,
) -> None:
    """Compare the models of a study: sizes solved for equal parameters, FLOPs, bytes of state and cache."""
    if force and keep:
        raise typer.BadParameter("--force and --keep exclude each other")
    if as_csv and as_json:
        raise typer.BadParameter("--csv and --json exclude each other")
    path = spec_path(file, "sweep")
    with answering(as_json):
        from rich.console import Console

        from archc.sweeps import study
        from archc.sweeps.table import csv_text, facts, legend, table

        began = time.perf_counter()
        found = study(path, tell=_tell if sys.stderr.isatty() else None, processes=_cores())
        errors = found.errors
        if as_json:
            print_json(facts(found))
        elif as_csv:
            print(csv_text(found), end="")
        else:
            # A pipe has no width: then every point stays on one line.
            width = None if sys.stdout.isatty() else 240
            print(f"{found.name}: {found.title}" if found.title else found.name)
            Console(width=width, highlight=False).print(table(found))
            print(f"{legend(found)} ({time.perf_counter() - began:.1f} s)")
        if errors:
            if not as_json:  # there they stand with their points
                print_diagnostics(errors, as_json=False, to=sys.stderr)
            if out is not None:
                bad = sum(bool(point.errors) for point in found.points)
                warn(f"archc: nothing is written to {out}: {bad} of {len(found.points)} points have mistakes")
            raise typer.Exit(INPUT)
        if out is not None:
            from archc.sweeps.files import write_specs

            written = write_specs(found, out, force=force, keep=keep)
            if not (as_json or as_csv):
                changes = f"{len(written.written)} specs written" if written.written else "nothing to change"
                for count, what in ((len(written.removed), "removed"), (len(written.kept), "kept as edited")):
                    changes += f", {count} {what}" if count else ""
                print(f"{out}: {changes}")
            for name in written.kept:
                warn(f"archc: {name} was edited by hand and is not written anew")


def _cores() -> int:
    """How many processes are worth while: the cores that this one may use, eight at most."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _tell(done: int, points: int) -> None:
    """Say on the terminal how far it is; without a thread of its own, so that the process can be copied."""
    print(
        f"\rcompiled {done} of {points}", end="" if done < points else "\r\x1b[K", file=sys.stderr, flush=True
    )
