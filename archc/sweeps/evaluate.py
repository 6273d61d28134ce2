"""One point of a sweep: its number solved, its graph built, everything counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from archc.elaboration.build import build_graph
from archc.graph.types import Graph
from archc.passes import run_passes
from archc.spec.diagnostics import Diagnostic, Reporter, SpecError
from archc.spec.resolved_text import resolved_text
from archc.spec.spec import Spec
from archc.spec.yaml_nodes import YScalar
from archc.sweeps.match import Guess, Search, Unreachable, percent
from archc.sweeps.places import put_everywhere
from archc.sweeps.points import Candidate, resolve_at
from archc.sweeps.types import Sweep, Target
from archc.totals import CostReport, cost_reports, count_parameters

COUNTED_AFTER = "remove_unused"  # cheaper than all passes: those after it rarely change weights
Guesses = list[tuple[Candidate, Guess]]


@dataclass(frozen=True, slots=True)
class Match:
    """What was solved for a point: `places` got `number`, so that `parameters` came near to `wanted`."""

    places: tuple[str, ...]
    number: int
    wanted: int
    parameters: int

    @property
    def deviation(self) -> float:
        """How far off the parameters are, in percent: below zero where there are fewer than wanted."""
        return 100 * (self.parameters - self.wanted) / self.wanted


@dataclass(frozen=True, slots=True)
class Point:
    """One model of a study.

    `values`: its values by axis, without the axes that make no difference to it. `costs`: at each of the sweep's
    `tokens`, for one sequence, activations of 2 bytes. `at_context`: at the model's own context. `text`: the
    resolved spec, a file that needs no other. `errors`: why the point is no model; then the rest is empty.
    """

    name: str
    values: Mapping[str, str]
    match: Match | None = None
    parameters: int = 0
    context: int = 0
    at_context: CostReport | None = None
    costs: tuple[CostReport, ...] = ()
    text: str = ""
    errors: tuple[Diagnostic, ...] = ()


def evaluate(sweep: Sweep, candidate: Candidate, guesses: Guesses) -> Point:
    """The point of a candidate. `guesses` are what was solved before, and receive what is solved here."""
    values = {name: value.name for name, value in candidate.values.items()}
    spec = candidate.spec
    if spec is None:
        return Point(candidate.name, values, errors=candidate.errors)
    match = None
    try:
        if sweep.target is not None and candidate.target is not None:
            match, spec, graph = _matched(sweep, candidate, sweep.target, candidate.target, guesses)
        else:
            graph = run_passes(_built(spec))
    except SpecError as error:
        return Point(candidate.name, values, errors=error.diagnostics)
    except Unreachable as error:
        return Point(candidate.name, values, errors=(error.found,))
    context = spec.settings.context
    reports = cost_reports(replace(graph, name=candidate.name), (context, *sweep.tokens))
    text = _header(sweep, values, match) + resolved_text(replace(spec, name=candidate.name))
    return Point(
        candidate.name,
        values,
        match,
        reports[0].parameters,
        context,
        reports[0],
        tuple(reports[1:]),
        text,
    )


def _built(spec: Spec) -> Graph:
    """The graph of a spec before all passes. Raises SpecError."""
    report = Reporter()
    graph = build_graph(spec, report)
    if graph is None:
        raise SpecError(sorted(report.diagnostics, key=lambda each: each.span))
    return graph


def _matched(
    sweep: Sweep, candidate: Candidate, target: Target, wanted: int, guesses: Guesses
) -> tuple[Match, Spec, Graph]:
    """The point with its number solved. Raises SpecError where it cannot be compiled, `Unreachable`."""
    made: dict[int, tuple[Spec, Graph]] = {}

    def count(after: str | None, number: int) -> int:
        if number not in made:
            made[number] = _with_number(sweep, candidate, target, number)
        return count_parameters(run_passes(made[number][1], after))

    start = _nearest(candidate, guesses)
    for after in (COUNTED_AFTER, None):
        search = Search(target, wanted, partial(count, after))
        number = search.solve(start)
        spec, graph = made[number][0], run_passes(made[number][1])
        if count_parameters(graph) == search.seen[number]:
            break  # else a later pass changes the weights of this model: count after all of them
    if search.guess is not None:
        guesses.append((candidate, search.guess))
    places = tuple(str(place) for place in target.places)
    return Match(places, number, wanted, search.seen[number]), spec, graph


def _nearest(candidate: Candidate, guesses: Guesses) -> Guess | None:
    """What was solved at the point that is most like this one, of those with the same target."""
    alike = [
        (sum(other.values.get(axis) is value for axis, value in candidate.values.items()), index)
        for index, (other, _) in enumerate(guesses)
        if other.target == candidate.target
    ]
    return guesses[max(alike)[1]][1] if alike else None


def _with_number(sweep: Sweep, candidate: Candidate, target: Target, number: int) -> tuple[Spec, Graph]:
    """A point's spec and graph with a number at the places that are solved. Raises SpecError."""
    report = Reporter()
    node = candidate.node
    for place in target.places:
        node = put_everywhere(node, [place], YScalar(place.span, str(number), str(number), "plain"), report)
    spec = resolve_at(sweep, node, report) if not report.diagnostics else None
    try:
        if spec is None:
            raise SpecError(sorted(report.diagnostics, key=lambda each: each.span))
        return spec, _built(spec)
    except SpecError as error:
        knob = ", ".join(str(place) for place in target.places)
        raise SpecError(
            replace(found, note="; ".join(filter(None, [found.note, f"while `{knob}` is {number:,}"])))
            for found in error.diagnostics
        ) from None


def _header(sweep: Sweep, values: Mapping[str, str], match: Match | None) -> str:
    """Comments at the top of a point's file: where it is from, and what was solved."""
    chosen = ", ".join(f"{axis} {value}" for axis, value in values.items())
    lines = [f"The point {chosen or 'itself'} of the sweep {sweep.name}."]
    if match is not None:
        lines.append(
            f"{', '.join(match.places)} = {match.number}: {match.parameters:,} parameters, "
            f"{percent(match.parameters, match.wanted)} off {match.wanted:,}."
        )
    return "".join(f"# {line}\n" for line in lines)
