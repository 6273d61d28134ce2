"""Commands that write: build, eject."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from archc.cli.answers import answering, print_json, warn
from archc.cli.kernel_commands import compiling
from archc.cli.sources import package_name, spec_path
from archc.cli.spec_commands import Json, SpecArgument


def build(
    spec: SpecArgument,
    target: Annotated[str, typer.Option("--target", "-t", help="What the package runs on.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The package's folder; generated/NAME by default.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that were edited by hand.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave files that were edited by hand as they are.")
    ] = False,
    allow_torch: Annotated[
        bool,
        typer.Option("--allow-torch", help="A recurrence whose kernels do not fit runs in its torch form."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Compile the kernels first, to see whether they fit the target."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Write the package of a model: source code that needs nothing but torch."""
    if force and keep:
        raise typer.BadParameter("--force and --keep exclude each other")
    path = spec_path(spec)
    with answering(as_json):
        from archc.kernels.targets import target_names

        if target not in {*target_names(), "cpu"}:
            raise typer.BadParameter(
                f"there is no target {target!r}; targets: {', '.join(['cpu', *target_names()])}. The target cpu is "
                "the torch form alone, which runs on any device of torch"
            )
        folder = out or Path("generated") / package_name(path)
        began = time.perf_counter()
        with _working(f"building {folder}") if target == "cpu" else compiling() as progress:
            from archc.pipeline import build as build_package

            report = build_package(
                path,
                folder,
                target=target,
                force=force,
                keep=keep,
                allow_torch=allow_torch,
                verify=verify,
                progress=progress,
            )
        seconds = time.perf_counter() - began
        if as_json:
            print_json(report)
            return
        written = report.written
        changes = f"{len(written.written)} files written" if written.written else "nothing to change"
        for count, what in ((len(written.removed), "removed"), (len(written.kept), "kept as edited")):
            changes += f", {count} {what}" if count else ""
        print(f"{folder}: {changes} ({seconds:.2f} s)")
        if report.verified is False:
            why = "Triton is not installed" if verify else "they were not compiled"
            warn(f"archc: {why}, so nobody has seen whether these kernels fit the target")
        for line in report.without_kernels:
            print(line)
        for name in report.torch_forms:
            warn(f"archc: the kernels of {name} do not fit {target}: over chunks it runs in its torch form")
        for file in written.kept:
            warn(f"archc: {file} was edited by hand and is not rebuilt")


def eject(
    folder: Annotated[Path, typer.Argument(help="A package that archc wrote.")],
    as_json: Json = False,
) -> None:
    """Make a package yours: archc will not write to its folder again."""
    with answering(as_json):
        from archc.output import eject as make_yours

        files = make_yours(folder)
        if as_json:
            print_json({"folder": folder, "files": files})
        else:
            print(f"{folder} is yours now: {len(files)} files that archc will not touch again")


@contextmanager
def _working(text: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
