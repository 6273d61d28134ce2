"""Commands that print facts about a model: show, cost, diff, bench."""

from __future__ import annotations

import sys
from pathlib import Path
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
    gpu: Annotated[bool, typer.Option("--gpu", help="Measure on this machine's GPU.")] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="With --cpu: a GGUF file, or an installed package that holds one: the peer gets the same weights.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timings of each case.")] = 7,
    target: Annotated[
        str, typer.Option("--target", "-t", help="With --gpu: what kernels are made for.")
    ] = "h100",
    only: Annotated[
        str,
        typer.Option(
            "--only", help="With --gpu: these groups, comma between: operations, decode, model, layer."
        ),
    ] = "operations,decode,model,layer",
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="With --gpu: wall time; cases beyond it are left out.")
    ] = 540.0,
    save: Annotated[
        Path | None, typer.Option("--save", help="With --gpu: write the JSON here after each case.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="With --gpu: go on with what the file of --save does not hold yet."),
    ] = False,
    device: Annotated[str, typer.Option("--device", help="With --gpu: cuda, or cpu to try it out.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="With --gpu: small cases, to try it out.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a model's speed beside peers; on a GPU its operations as well."""
    if cpu == gpu:
        raise typer.BadParameter("say where to measure: --cpu or --gpu")
    path = spec_path(spec)
    if gpu:
        _bench_gpu(path, target, only, seconds, rounds, save, resume, device, tiny, as_json)
        return
    with answering(as_json):
        file = Path(weights) if weights else None
        if weights and not Path(weights).is_file():
            from archc.weights import packaged_file

            file = packaged_file(weights)
        from rich.console import Console

        from archc.cli.measure import measure

        with Console(stderr=True, quiet=not sys.stderr.isatty()).status("measuring") as status:
            found = measure(path, file, rounds=rounds, tell=status.update)
        if as_json:
            print_json(found)
            return
        print(
            f"{found.machine}, {found.threads} threads, "
            + ", ".join(f"{p} {v}" for p, v in found.versions.items())
        )
        for timing in found.timings:
            line = f"{timing.case:8} batch {timing.batch_size}  {timing.ours:9.1f} tokens/s"
            if timing.ratio is not None:
                line += f"  peer {timing.peer:9.1f} tokens/s  {timing.ratio:.2f} times the peer"
            print(line)


def _bench_gpu(
    path: Path,
    target: str,
    only: str,
    seconds: float,
    rounds: int,
    save: Path | None,
    resume: bool,
    device: str,
    tiny: bool,
    as_json: bool,
) -> None:
    from archc.kernels.bench.cases import GROUPS
    from archc.kernels.bench.record import lines
    from archc.kernels.bench.run import measure_gpu
    from archc.kernels.targets import target_names

    groups = tuple(only.split(","))
    if unknown := [group for group in groups if group not in GROUPS]:
        raise typer.BadParameter(f"there is no group {unknown[0]!r}; groups: {', '.join(GROUPS)}")
    if target not in target_names():
        raise typer.BadParameter(f"there is no target {target!r}; targets: {', '.join(target_names())}")
    if device not in ("cuda", "cpu"):
        raise typer.BadParameter("a device is cuda or cpu")
    if resume and save is None:
        raise typer.BadParameter("--resume goes on with the file that --save names")
    with answering(as_json):
        from rich.console import Console

        with Console(stderr=True, quiet=not sys.stderr.isatty()).status("measuring") as status:
            found = measure_gpu(
                path,
                target=target,
                device=device,
                tiny=tiny,
                seconds=seconds,
                rounds=rounds,
                groups=groups,
                save=save,
                resume=resume,
                tell=status.update,
            )
        if as_json:
            print_json(found)
        else:
            print("\n".join(lines(found)))
