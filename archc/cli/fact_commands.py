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


def cost(
    spec: SpecArgument,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Sequences at once.")] = 1,
    tokens: Annotated[
        int | None, typer.Option("--tokens", "-T", min=1, help="Tokens a sequence; the context by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a model costs: parameters, FLOPs, bytes of cache and state, before anything runs."""
    path = spec_path(spec)
    with answering(as_json):
        from archc.pipeline import cost as count

        report = count(path, batch_size=batch_size, tokens=tokens)
        if as_json:
            print_json(report)
        else:
            print(str(report).rstrip("\n"))


def diff(
    old: Annotated[str, typer.Argument(metavar="A", help="The spec that a checkpoint was trained with.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The spec that it is to be loaded into.")],
    as_json: Json = False,
) -> None:
    """List the parameters that B keeps of A, renames, reshapes, adds and drops."""
    paths = spec_path(old), spec_path(new)
    with answering(as_json):
        from archc.cli.parameter_diff import compare, summarise, summarise_renames
        from archc.pipeline import parameters

        found = compare(*(parameters(path) for path in paths))
        if as_json:
            print_json(found)
            return
        print(f"{len(found.kept)} parameters kept")
        reshaped = [f"{name}: {list(a)} -> {list(b)}" for name, (a, b) in found.reshaped.items()]
        for title, names, lines in (
            ("renamed", found.renamed, summarise_renames(found.renamed)),
            ("reshaped", found.reshaped, summarise(reshaped)),
            ("new", found.new, summarise(f"{name} {list(shape)}" for name, shape in found.new.items())),
            ("gone", found.gone, summarise(f"{name} {list(shape)}" for name, shape in found.gone.items())),
        ):
            if names:
                print("\n".join([f"{len(names)} {title}", *(f"  {line}" for line in lines)]))


def bench(
    spec: SpecArgument,
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure on this machine's CPU.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a model's speed beside a peer with the same weights."""
    path = spec_path(spec)
    with answering(as_json):
        raise NotImplementedError(path)
