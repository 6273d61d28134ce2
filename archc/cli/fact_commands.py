"""Commands that print facts about a model: show, cost, diff, bench."""

from __future__ import annotations

from typing import Annotated

import typer

from archc.cli.answers import answering, print_json
from archc.cli.sources import spec_path
from archc.cli.spec_commands import Json, SpecArgument


def show(
    spec: SpecArgument,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="The spec with every default written out.")
    ] = False,
    after: Annotated[
        str | None, typer.Option("--after", metavar="PASS", help="The graph after this pass.")
    ] = None,
    params: Annotated[bool, typer.Option("--params", help="Every parameter: name, shape, count.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a spec came to: resolved (the default), as a graph after a pass, or as its parameters."""
    if resolved + (after is not None) + params > 1:
        raise typer.BadParameter("choose one of --resolved, --after and --params")
    path = spec_path(spec)
    with answering(as_json):
        from archc.pipeline import show as render

        text = render(path, resolved=resolved or not (after or params), after=after, params=params)
        if as_json:
            what = "params" if params else "after" if after else "resolved"
            print_json({"spec": path, what: text.splitlines()})
        else:
            print(text.rstrip("\n"))
