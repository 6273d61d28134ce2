"""Commands about specs: new, check, explain, schema, library."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archc.cli.answers import INPUT, answering, print_diagnostics, print_json, warn
from archc.cli.sources import spec_path

if TYPE_CHECKING:
    from archc.cli.library import Entry

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A spec file, or the name of a packaged model.")
]


def new(
    name: Annotated[str, typer.Argument(help="The model's name, a Python identifier.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; NAME.yaml by default.")
    ] = None,
) -> None:
    """Write a commented spec to start from, with a mixer of its own as equations."""
    from archc.data import data_folder

    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        raise typer.BadParameter(
            f"{name!r} is no Python identifier, and the package is imported by this name"
        )
    path = out or Path(f"{name}.yaml")
    with answering():
        text = (data_folder("specs") / "starter" / "starter.yaml").read_text(encoding="utf-8")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(re.sub(r"^name: starter$", f"name: {name}", text, count=1, flags=re.MULTILINE))
        except FileExistsError:
            warn(f"archc: {path} exists already and is left as it is")
            raise typer.Exit(INPUT) from None
        print(f"wrote {path}; next: archc check {path}, archc build {path}")


def check(
    specs: Annotated[
        list[str], typer.Argument(metavar="SPEC...", help="Spec files, or names of packaged models.")
    ],
    as_json: Json = False,
) -> None:
    """Say every mistake in the specs, each with its place, its cause and a way out."""
    paths = [spec_path(spec) for spec in specs]
    with answering(as_json):
        from archc.pipeline import check as find_mistakes

        found = [diagnostic for path in paths for diagnostic in find_mistakes(path)]
        if found or as_json:
            print_diagnostics(found, as_json=as_json, to=sys.stdout)
        else:
            print("\n".join(f"{path}: no mistakes" for path in paths))
        if found:
            raise typer.Exit(INPUT)


def explain(
    code: Annotated[str, typer.Argument(help="An error code, such as E101.")],
    as_json: Json = False,
) -> None:
    """Print the page of an error code: what it means, an example, and how to put it right."""
    with answering(as_json):
        from archc.errors import page, titles

        text = page(code)
        wanted = code.strip().upper()
        if text is None:
            import difflib

            close = difflib.get_close_matches(wanted, titles(), n=3, cutoff=0.5)
            hint = f"; close ones: {', '.join(close)}" if close else ""
            raise typer.BadParameter(f"there is no error {code!r}{hint}")
        if as_json:
            print_json({"code": wanted, "page": text})
        elif sys.stdout.isatty():
            from rich.console import Console
            from rich.markdown import Markdown

            Console().print(Markdown(text))
        else:
            print(text.rstrip("\n"))


def schema(
    kind: Annotated[
        str, typer.Argument(help="What to describe: model, mixer, mlp, block, function, sweep.")
    ] = "model",
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    with answering():
        from archc.spec.schema import KINDS, generate

        if kind not in KINDS:
            raise typer.BadParameter(f"there is no kind {kind!r}; kinds: {', '.join(KINDS)}")
        print_json(generate(kind))


def library(
    name: Annotated[str | None, typer.Argument(help="Print this entry's file instead of the list.")] = None,
    as_json: Json = False,
) -> None:
    """List what a spec here can use: mixers, MLPs, blocks, functions, models and sweeps, with their sources."""
    with answering(as_json):
        from archc.cli.library import entries

        found = entries(Path())
        if name is not None:
            chosen = [entry for entry in found if entry.name == name]
            if not chosen:
                raise typer.BadParameter(f"the library has no {name!r}; `archc library` lists what it has")
            if as_json:
                print_json(
                    [{**entry.facts(), "text": entry.path.read_text(encoding="utf-8")} for entry in chosen]
                )
            else:
                print("\n".join(entry.path.read_text(encoding="utf-8").rstrip("\n") for entry in chosen))
        elif as_json:
            print_json([entry.facts() for entry in found])
        else:
            _print_library(found)


def _print_library(found: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("kind", "name", "title", "source"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("kind", "name"))
    last = ""
    for entry in found:
        kind = entry.kind if entry.kind != last else ""
        last = entry.kind
        notes = [entry.form, "" if entry.library == "archc" else entry.library]
        title = " ".join([entry.title, *(f"({note})" for note in notes if note)]).strip()
        table.add_row(kind, Text(entry.name, style="bold"), Text(title), Text(entry.source, style="dim"))
    # A pipe has no width: then every entry stays on one line.
    width = None if sys.stdout.isatty() else 240
    Console(width=width, highlight=False).print(table)
