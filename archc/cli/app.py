"""The commands in the order of the help page, and the entry point that runs them."""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer

from archc import __version__
from archc.cli import build_commands, fact_commands, kernel_commands, spec_commands, sweep_commands
from archc.cli.answers import answering

_CHECKING = "Write and check"
_BUILDING = "Build"
_FACTS = "Facts"

app = typer.Typer(
    name="archc",
    help="Write the equations of a sequence model; get the model, its decode step, its costs, and the proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("new", rich_help_panel=_CHECKING)(spec_commands.new)
app.command("check", rich_help_panel=_CHECKING)(spec_commands.check)
app.command("explain", rich_help_panel=_CHECKING)(spec_commands.explain)
app.command("schema", rich_help_panel=_CHECKING)(spec_commands.schema)
app.command("build", rich_help_panel=_BUILDING)(build_commands.build)
app.command("eject", rich_help_panel=_BUILDING)(build_commands.eject)
app.command("kernels", rich_help_panel=_BUILDING)(kernel_commands.kernels)
app.command("show", rich_help_panel=_FACTS)(fact_commands.show)
app.command("library", rich_help_panel=_FACTS)(spec_commands.library)
app.command("cost", rich_help_panel=_FACTS)(fact_commands.cost)
app.command("sweep", rich_help_panel=_FACTS)(sweep_commands.sweep)
app.command("diff", rich_help_panel=_FACTS)(fact_commands.diff)
app.command("bench", rich_help_panel=_FACTS)(fact_commands.bench)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"archc {__version__}")
        raise typer.Exit(0)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Write the equations of a sequence model; get the model, its decode step, its costs, and the proof."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 the input is at fault, 2 usage, 3 the machine is at fault."""
    gc.set_threshold(
        100_000
    )  # a compilation is short and keeps what it makes: looking for cycles is a tenth of it
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal that cannot show a character still works
    try:
        with answering():
            app(prog_name="archc")
    except typer.Exit as exit:
        sys.exit(exit.exit_code)
