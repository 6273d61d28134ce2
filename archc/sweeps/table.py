"""Shows a study: as a table for a terminal, as rows for CSV, as facts for JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from archc.spec.render import to_json
from archc.sweeps.evaluate import Point
from archc.sweeps.match import percent
from archc.sweeps.run import Study
from archc.totals import CostReport, bytes_text, count_text

if TYPE_CHECKING:
    from rich.table import Table

_COSTS: tuple[tuple[str, Callable[[CostReport], int | float]], ...] = (
    ("prefill_flops_per_token", lambda cost: round(cost.prefill_flops / cost.tokens)),
    ("decode_flops_per_token", lambda cost: cost.decode_flops),
    ("training_flops_per_token", lambda cost: round(cost.training_flops / cost.tokens)),
    ("state_bytes", lambda cost: cost.state_bytes),
    ("window_bytes", lambda cost: cost.window_bytes),
    ("cache_bytes", lambda cost: cost.cache_bytes),
)


def facts(study: Study) -> dict[str, object]:
    """Everything that a study found, as JSON has it. FLOPs are for one token, bytes for one sequence."""
    return {
        "sweep": study.name,
        "title": study.title,
        "source": study.source,
        "axes": study.axes,
        "tokens": study.tokens,
        "combinations": study.combinations,
        "points": [_point_facts(point) for point in study.points],
    }


def _point_facts(point: Point) -> dict[str, object]:
    found: dict[str, object] = {"name": point.name, "values": point.values}
    if point.errors:
        return {**found, "errors": json.loads(to_json(point.errors))}
    if point.match is not None:
        found["match"] = {
            "by": point.match.places,
            "number": point.match.number,
            "wanted": point.match.wanted,
            "parameters": point.match.parameters,
            "deviation_percent": round(point.match.deviation, 4),
        }
    found |= {"parameters": point.parameters, "context": point.context}
    costs = {cost.tokens: _cost_facts(cost) for cost in (point.at_context, *point.costs) if cost is not None}
    return {**found, "costs": list(costs.values())}


def _cost_facts(cost: CostReport) -> dict[str, object]:
    return {"tokens": cost.tokens, **{name: value(cost) for name, value in _COSTS}}


def csv_text(study: Study) -> str:
    """A line for each point and length, with a head; points that are no models have their code and no numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for name, _ in _COSTS]
    head = ["name", *study.axes, "solved", "wanted", "parameters", "tokens", *names, "error"]
    writer.writerow(head)
    for point in study.points:
        solved = [point.match.number, point.match.wanted] if point.match is not None else ["", ""]
        first = [point.name, *(point.values.get(axis, "") for axis in study.axes), *solved]
        if point.errors or point.at_context is None:
            writer.writerow([*first, *[""] * (2 + len(names)), point.errors[0].code])
        for cost in () if point.at_context is None else point.costs or (point.at_context,):
            row = [point.parameters, cost.tokens, *(value(cost) for _, value in _COSTS), ""]
            writer.writerow([*first, *row])
    return out.getvalue()


def table(study: Study) -> Table:
    """A row for each point: its values, what was solved, parameters, FLOPs at the context, bytes."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    knob = next((point.match.places[0].rsplit(".", 1)[1] for point in study.points if point.match), None)
    good = [point for point in study.points if point.at_context is not None]
    windows = any(point.at_context.window_bytes for point in good if point.at_context is not None)
    for axis in study.axes:
        shown.add_column(axis, no_wrap=True)
    numbers = [*([knob] if knob else []), "parameters", *(["off"] if knob else [])]
    numbers += ["prefill", "decode", "training", "state", *(["windows"] if windows else [])]
    lengths = study.tokens or tuple({point.context: None for point in good})
    numbers += [f"cache {length:,}" for length in lengths]
    for heading in numbers:
        shown.add_column(heading, justify="right", no_wrap=True)
    last: tuple[str, ...] = ()
    for point in study.points:
        values = tuple(point.values.get(axis, "any") for axis in study.axes)
        cells = [Text(value, style="" if value != "any" else "dim") for value in values]
        if last and values[0] != last[0]:
            shown.add_section()
        last = values
        if point.at_context is None:
            code = Text(f"error {point.errors[0].code}", style="bold red")
            shown.add_row(*cells, *([""] if knob else []), code)
            continue
        cost = point.at_context
        row = [f"{point.match.number:,}"] if point.match is not None else [""] if knob else []
        row.append(count_text(point.parameters, digits=4))
        if knob:
            row.append(percent(point.match.parameters, point.match.wanted) if point.match else "")
        row += [count_text(flops / cost.tokens) for flops in (cost.prefill_flops,)]
        row += [count_text(cost.decode_flops), count_text(cost.training_flops / cost.tokens)]
        row += [bytes_text(cost.state_bytes), *([bytes_text(cost.window_bytes)] if windows else [])]
        caches = {each.tokens: each.cache_bytes for each in (cost, *point.costs)}
        row += [bytes_text(caches[length]) if length in caches else "" for length in lengths]
        shown.add_row(*cells, *row)
    return shown


def legend(study: Study) -> str:
    """What the table's numbers are."""
    contexts = sorted({point.context for point in study.points if point.at_context is not None})
    where = f"{contexts[0]:,} tokens" if len(contexts) == 1 else "each model's context"
    made = f"{len(study.points)} models"
    if study.combinations != len(study.points):
        made += f" from {study.combinations} combinations"
    return (
        f"{made}. FLOPs are for one token at {where}; bytes for one sequence, activations in 2 bytes, caches at so "
        "many tokens."
    )
