"""The compiler on one screen.

takes              gives              in
text               Spec               archc/spec/
Spec               Graph              archc/graph/
Graph              Graph              archc/passes/, in the order of `PASSES`
Graph              {path: source}     archc/codegen/ and templates/
{path: source}     a package          archc/output/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from archc.spec.diagnostics import Diagnostic, Reporter, SpecError
from archc.spec.spec import Spec

if TYPE_CHECKING:
    from archc.graph.types import Graph
    from archc.kernels.targets import Target
    from archc.output.write import WriteReport
    from archc.sweeps import Point
    from archc.totals import CostReport

NEEDS_OTHER_LAYERS = "E338"  # an export, which may stand in a layer that cannot be read

Source = str | Path | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Report:
    """What a build did: the model's name, the files, what was written.

    verified: whether the kernels were compiled for the target; None without kernels. torch_forms: classes of recurrence
    that run over chunks in the torch form since their kernels do not fit. without_kernels: sentences on what has none.
    """

    name: str
    files: tuple[str, ...]
    written: WriteReport
    verified: bool | None = None
    torch_forms: tuple[str, ...] = ()
    without_kernels: tuple[str, ...] = ()


def load_spec(
    source: Source,
    report: Reporter,
    sources: MutableMapping[str, str] | None = None,
    sound: list[Spec] | None = None,
) -> Spec | None:
    """Text to a resolved spec; None after errors, which are in `report`.

    `sound` receives what of a spec with errors can be read on.
    """
    from archc.operations.registry import add_project_operations
    from archc.spec.resolve import load

    add_project_operations(
        Path.cwd() if isinstance(source, Mapping) else Path(source).absolute().parent, report
    )
    return load(source, report, sources, sound=sound)


def make_graph(spec: Spec, report: Reporter, after: str | None = None) -> Graph | None:
    """A spec to a graph, through all passes or up to the one called `after`."""
    from archc.elaboration.build import build_graph
    from archc.passes import run_passes

    graph = build_graph(spec, report)
    return None if graph is None else run_passes(graph, after)


def check(source: Source, sources: MutableMapping[str, str] | None = None) -> list[Diagnostic]:
    """Every mistake of a spec or of a sweep, in the order of their places; an empty list if there is none."""
    from archc.spec.library import is_sweep

    if is_sweep(source):
        return _check_sweep(source, sources)
    report = Reporter()
    sound: list[Spec] = []
    spec = load_spec(source, report, sources, sound)
    if spec is not None:
        make_graph(spec, report)
    for part in sound:  # layers without mistakes so far, which may have some in their equations
        more = Reporter()
        make_graph(part, more)
        report.diagnostics += [found for found in more.diagnostics if found.code != NEEDS_OTHER_LAYERS]
    return sorted(report.diagnostics, key=lambda found: found.span)


def _check_sweep(source: Source, sources: MutableMapping[str, str] | None) -> list[Diagnostic]:
    from archc.sweeps import study

    try:
        return study(source, sources).errors
    except SpecError as error:
        return list(error.diagnostics)


def sweep(source: Source) -> list[Point]:
    """Every point of a sweep, in the order of its axes: parameters, FLOPs, bytes, and its spec as text.

    `source` is the path of a sweep file, or a mapping of the same content. Points that are no models have
    `errors`. Raises SpecError for mistakes of the sweep itself.
    """
    from archc.sweeps import study

    return list(study(source).points)


def graph_of(source: Source, after: str | None = None, target: Target | None = None) -> Graph:
    """The graph of a spec, for a GPU as its kernels are cut. Raises SpecError with everything that is wrong with it."""
    report = Reporter()
    spec = load_spec(source, report)
    graph = None if spec is None else make_graph(spec, report, after)
    if graph is None or report.diagnostics:
        raise SpecError(sorted(report.diagnostics, key=lambda found: found.span))
    if target is None:
        return graph
    from archc.kernels.chunks import fit_chunks

    return fit_chunks(graph, target)


def sources_of(
    source: Source, target: str = "cpu", torch_forms: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Path -> text of the package. Raises SpecError with everything that is wrong with the spec.

    `target` is "cpu", the torch form alone, or a GPU of specs/targets; `torch_forms` names classes of recurrence that
    have no kernels over chunks there. Raises ValueError for another target.
    """
    from archc.codegen.package import package_files
    from archc.kernels.targets import load_target
    from archc.totals import cost_report

    gpu = None if target == "cpu" else load_target(target)
    name = "" if isinstance(source, Mapping) else Path(source).name
    graph = graph_of(source, target=gpu)
    facts = cost_report(graph).facts()
    return package_files(graph, spec_name=name, facts=facts, target=gpu, torch_forms=torch_forms)


def build(
    source: Source,
    out: str | Path,
    target: str = "cpu",
    force: bool = False,
    keep: bool = False,
    allow_torch: bool = False,
    verify: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write the package of a model into `out`, with the kernels of a target that is not "cpu".

    Where Triton is installed, those are compiled for the target first; `progress` is told how many are, of how many.
    With `allow_torch` a recurrence whose kernels do not fit runs in its torch form; without `verify` none is compiled,
    and the self-test on the GPU says whether they work. Raises SpecError for mistakes in the spec, for kernels that do
    not fit and for a folder that holds something else or hand edits, MachineError where the machine cannot write.
    """
    from archc.output.write import write_package

    torch_forms: frozenset[str] | None = frozenset()
    without: tuple[str, ...] = ()
    if target != "cpu":
        from archc.kernels.check import unfit
        from archc.kernels.targets import load_target
        from archc.kernels.torch_forms import torch_forms as forms_without_kernels

        gpu = load_target(target)
        graph = graph_of(source, target=gpu)
        torch_forms = unfit(graph, gpu, allow_torch, progress) if verify else None
        without = forms_without_kernels(graph, gpu)
    files = sources_of(source, target, torch_forms or frozenset())
    written = write_package(files, Path(out), force=force, keep=keep)
    verified = None if target == "cpu" else torch_forms is not None
    fallen = tuple(sorted(torch_forms or ()))
    return Report(Path(out).name, tuple(sorted(files)), written, verified, fallen, without)


def show(source: Source, resolved: bool = False, after: str | None = None, params: bool = False) -> str:
    """A spec as text: resolved, as the graph after a pass, or as its parameters with their shapes.

    Raises SpecError for mistakes in the spec and for a pass that does not exist.
    """
    if after is not None:
        from archc.graph.text import graph_text
        from archc.passes import PASSES

        names = ["build", *(name for name, _ in PASSES)]
        if after not in names:
            raise SpecError(
                [Diagnostic("E399", f"there is no pass `{after}`", help=f"passes: {', '.join(names)}")]
            )
        return graph_text(graph_of(source, after))
    if params:
        shapes = parameters(source)
        total = sum(math.prod(shape) for shape in shapes.values())
        width = max(len(name) for name in shapes)
        lines = [f"{name:<{width}}  {list(shape)}" for name, shape in shapes.items()]
        return "\n".join([*lines, f"{total:,} parameters in {len(shapes)} tensors"])
    from archc.spec.resolved_text import resolved_text

    report = Reporter()
    spec = load_spec(source, report)
    if spec is None or report.diagnostics:
        raise SpecError(sorted(report.diagnostics, key=lambda found: found.span))
    return resolved_text(spec)


def parameters(source: Source) -> dict[str, tuple[int, ...]]:
    """Every parameter of a model by name, with its shape. Raises SpecError for mistakes in the spec."""
    from archc.totals import parameter_shapes

    return parameter_shapes(graph_of(source))


def cost(source: Source, batch_size: int = 1, tokens: int | None = None) -> CostReport:
    """What a model costs for sequences of `tokens` (default: its context). Raises SpecError."""
    from archc.totals import cost_report

    return cost_report(graph_of(source), batch_size=batch_size, tokens=tokens)
