"""Compile the kernels of every recurrent mixer of the library for every target, and write docs/kernels_of_mixers.md.

`python scripts/mixer_kernels.py [TARGET | MIXER ...]` renews what is named: these mixers on these targets, all by
default. What is planned for a mixer is found without compiling; what does not fit is kept in
docs/kernels_of_mixers.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from archc.codegen.package import recurrence_name
from archc.graph.types import Graph
from archc.kernels.check import CHUNKED
from archc.kernels.chunks import fit_chunks
from archc.kernels.compile import triton_version, verify
from archc.kernels.fusing.decode import fuse_decode, why_not
from archc.kernels.plan import kernels_of
from archc.kernels.recurrence import chunked, has_reverse, sizes_of, uses_of
from archc.kernels.targets import Target, load_target, target_names
from archc.pipeline import graph_of
from archc.spec.diagnostics import SpecError

ROOT = Path(__file__).resolve().parents[1]
MIXERS = sorted(path.stem for path in (ROOT / "specs" / "mixers").glob("*.yaml"))
PAGE, FIGURES = ROOT / "docs" / "kernels_of_mixers.md", ROOT / "docs" / "kernels_of_mixers.json"
DETAILED = "h100"  # the target of the first table
WIDTH, HEADS = 1024, 8  # of the model: heads of 128 where a mixer's own defaults say nothing else
OTHERS = {  # recurrent operations that have no kernels
    "sequential": "torch form: a state that goes through a nonlinearity, token by token",
    "diagonal_ssm": "torch form: a convolution as long as the sequence",
}
COLUMNS = ("class", "K, V", "forward", "backward", "decode")

HEAD = f"""# Kernels of the library's mixers

<!-- Written by scripts/mixer_kernels.py, which compiles what stands here; nothing here was run. -->

What each recurrent mixer of the library gets with `--target {DETAILED}`, in a model of width {WIDTH} with {HEADS} heads
where it has heads, its other parameters at their defaults, in bf16; the other targets follow below. A mixer with
several recurrences has a row for each.

- **kernels**: forward over chunks, or gradients, run in Triton kernels of the class.
- **scan kernels**: an elementwise recurrence over channels, forward and backward in one launch each.
- **torch form**: the same in PyTorch; the reason stands below.
- **E501**: there are kernels, and the named one does not fit here. `--allow-torch` builds the torch form instead.
- **decode**: how many launches one token of the mixer takes, matrix products included. Where it says "a kernel", the
  recurrence is one launch and the equations around it run one by one.
"""


OTHER_TARGETS = """## Every target

How the recurrences with kernels run on each target, forward / backward, in the words of the table above.
"""


@cache
def model(name: str) -> Graph:
    """A model whose every layer has this mixer."""
    mistake: SpecError | None = None
    for given in ({"n_heads": HEADS}, {}):
        try:
            return graph_of(
                {
                    "archc": 1,
                    "name": name,
                    "model": {"vocab_size": 64, "d_model": WIDTH, "n_layers": 2, "context": 2048},
                    "blocks": {"main": {"mixer": {"use": name, **given}, "mlp": {"use": "swiglu"}}},
                }
            )
        except SpecError as error:
            mistake = mistake or error
    assert mistake is not None
    raise mistake


def planned(name: str, target: Target) -> list[dict[str, str]]:
    """The rows of a mixer as they are planned, whether or not the kernels fit; none without a recurrence."""
    graph = fit_chunks(model(name), target)
    rows: dict[str, dict[str, str]] = {}
    for kind, uses in uses_of(graph).items():
        sizes = sizes_of(kind, uses, target)
        for use in uses:
            reason = chunked(kind, use, target)
            backward = not reason and has_reverse(kind, sizes, target)
            row = {
                "class": f"`{recurrence_name(kind)}`",
                "K, V": f"{use.K}, {use.V}",
                "forward": f"torch form: {reason}" if reason else "kernels",
                "backward": "kernels" if backward else "torch form",
                "decode": "a kernel",
            }
            rows[f"{row['class']} {row['K, V']}"] = row
    modules = [module for module in graph.modules.values() if module.body.kind == "mixer"]
    for node in (node for module in modules for node in module.subgraph.nodes):
        form = OTHERS.get(node.op, "")
        if node.op == "scan":
            form = "torch form: a decay with an angle" if "angle" in node.attrs["order"] else "scan kernels"
        if form:
            cells = (node.op, "", form, form.split(":")[0], "torch form")
            rows[form] = dict(zip(COLUMNS, cells, strict=True))
    for module in modules:
        fused = fuse_decode(module)
        if rows and fused is not None:
            next(iter(rows.values()))["decode"] = f"{fused.launches} launches"
    return list(rows.values())


def reasons(name: str) -> str:
    """Why a mixer's token is not one kernel between its products; empty if it is."""
    modules = [module for module in model(name).modules.values() if module.body.kind == "mixer"]
    found = {
        why_not(module) for module in modules if any(n.op == "recurrence" for n in module.subgraph.nodes)
    }
    return "; ".join(sorted(found - {""}))


def misfits(name: str, target: Target) -> dict[str, str]:
    """File and role -> why that kernel of a mixer does not fit."""
    kernels = [
        k
        for k in kernels_of(fit_chunks(model(name), target), target)
        if k.role in (*CHUNKED, "decode", "scan")
    ]
    fits = verify(kernels, target, lambda done, total: None)
    return {f"{fit.file.removesuffix('_kernels.py')} {fit.name}": fit.reason for fit in fits if not fit.fits}


def shown(row: Mapping[str, str], unfit: Mapping[str, str]) -> dict[str, str]:
    """A row with what does not fit."""
    found = dict(row)
    for column, names in (("forward", ("prepare", "walk")), ("backward", ("walk_back", "walk_again"))):
        bad = [name for name in names if f"{row['class'].strip('`')} {name}" in unfit]
        if bad and row[column] == "kernels":
            found[column] = f"E501: `{bad[0]}`"
    return found


def line(name: str, cells: Mapping[str, str]) -> str:
    """A line of the table; only the first of a mixer names it."""
    return f"| {f'`{name}`' if name else ''} | {' | '.join(cells[column] for column in COLUMNS)} |"


def page(figures: Mapping[str, Any]) -> str:
    """The whole page."""
    targets = {name: load_target(name) for name in target_names()}
    lines = [HEAD, f"Compiled by Triton {figures['triton']}.", ""]
    lines += [f"| mixer | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    notes, others = [], []
    for name in MIXERS:
        found = {
            target: [shown(row, figures["misfits"][target][name]) for row in planned(name, facts)]
            for target, facts in targets.items()
        }
        rows = found[DETAILED]
        lines += [line("" if number else name, row) for number, row in enumerate(rows)]
        others += across(name, found)
        why = reasons(name) if rows else ""
        notes += [f"- `{name}`: {why}."] if why else []
    lines += ["", "Why a token is not one kernel between its products:", "", *notes, "", OTHER_TARGETS]
    lines += [f"| mixer | K, V | {' | '.join(targets)} |", "|---" * (len(targets) + 2) + "|", *others]
    return "\n".join(lines) + "\n"


def across(name: str, found: Mapping[str, list[dict[str, str]]]) -> list[str]:
    """The lines of a mixer in the table of all targets, from its rows by target."""
    lines: list[str] = []
    for rows in zip(*found.values(), strict=True):  # a recurrence on every target
        if rows[0]["K, V"] and not rows[0]["forward"].startswith("torch form"):
            cells = [f"{row['forward']} / {row['backward']}" for row in rows]
            lines.append(f"| {'' if lines else f'`{name}`'} | {rows[0]['K, V']} | {' | '.join(cells)} |")
    return lines


def main(names: list[str]) -> None:
    """Compile and write."""
    figures: dict[str, Any] = {"misfits": {}}
    if names and FIGURES.exists():
        figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    figures["triton"] = triton_version()
    targets = [name for name in target_names() if name in names] or target_names()
    for target in targets:
        for name in [name for name in MIXERS if name in names] or MIXERS:
            print(target, name, file=sys.stderr, flush=True)
            found = misfits(name, load_target(target))
            figures["misfits"].setdefault(target, {})[name] = found
            FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(figures), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
