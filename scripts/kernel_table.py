"""Compile the kernels of every class of recurrence for every target, and write docs/kernels.md and docs/kernels.json.

`python scripts/kernel_table.py [TARGET...] [SIZE...]` renews these targets and sizes only, all by default.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from archc.graph.types import Graph
from archc.kernels.chunks import fit_chunks
from archc.kernels.compile import triton_version, verify
from archc.kernels.fit import Fit
from archc.kernels.kernel import Kernel
from archc.kernels.plan import kernels_of
from archc.kernels.report import recurrence_kinds
from archc.kernels.targets import Target, load_target, target_names
from archc.pipeline import graph_of

ROOT = Path(__file__).resolve().parents[1]
SIZES = (64, 96, 128)
LARGE = (192, 256)  # promised where shared memory is large
WIDE = ("h100", "h200", "b200")

# What distinguishes the kernels of one class from those of another: the arguments of its recurrence, as equations.
HEAD = {"decay": "logsigmoid(linear(x, [n_heads]))"}
KEY = {"decay": "logsigmoid(linear(x, [n_heads, key_size]))"}
BETA = {"beta": "sigmoid(linear(x, [n_heads]))"}
BONUS = {"bonus": "param(u, [n_heads, key_size])"}
BOUNDED = {"decay": "-0.6 * sigmoid(linear(x, [n_heads, key_size]))"}
PAIR = {"erase_write": "k * sigmoid(linear(x, [n_heads, key_size]))", "erase_read": "-k"}
WEIGHT = {"log_input": "linear(x, [n_heads])"}
CLASSES: dict[str, dict[str, str]] = {
    "no_decay": {},
    "delta": BETA,
    "head_decay": HEAD,
    "head_decay_delta": HEAD | BETA,
    "key_decay": KEY,
    "key_decay_exclusive": KEY | BONUS,
    "key_decay_delta": KEY | BETA,
    "key_decay_erase_previous_bounded": BOUNDED | PAIR,
    "value_decay": {"decay_v": "logsigmoid(linear(x, [n_heads, value_size]))"},
    "erase_previous": PAIR,
    "head_decay_erase_previous": HEAD | PAIR,
    "normalized_sum": {},
    "head_decay_normalized_sum": HEAD,
    "head_decay_normalized_max_log_input": HEAD | WEIGHT,
    "key_decay_normalized_sum": KEY,
}
# What stands beside the arguments.
SUM, MAX = ("normalize=sum", "eps=1e-6"), ("normalize=max", "eps=1e-6")
OPTIONS = {
    "normalized_sum": SUM,
    "head_decay_normalized_sum": SUM,
    "head_decay_normalized_max_log_input": MAX,
    "key_decay_normalized_sum": SUM,
}


def sizes_of(target: str) -> tuple[int, ...]:
    """The sizes of K = V that are promised for a target."""
    return (*SIZES, *LARGE) if target in WIDE else SIZES


def model(name: str, K: int, V: int, given: Mapping[str, str] | None = None) -> Graph:
    """A model with one layer, whose only recurrence is of a class, or has these arguments."""
    given, options = (CLASSES[name], OPTIONS.get(name, ())) if given is None else (given, ())
    arguments = ", ".join(["q, k, v", *(f"{each}={each}" for each in given), "scale=auto", *options])
    arguments += ", erase_from=previous" if "erase_read" in given else ""
    mixer = {
        "params": {each: {"type": "int"} for each in ("n_heads", "key_size", "value_size")},
        "body": {
            "q": "linear(x, [n_heads, key_size])",
            "k": "l2norm(linear(x, [n_heads, key_size]))",
            "v": "linear(x, [n_heads, value_size])",
            **given,
            "o": f"recurrence({arguments})",
            "y": "linear(o, d_model)",
        },
    }
    use = {"use": "only", "n_heads": 4, "key_size": K, "value_size": V}
    return graph_of(
        {
            "archc": 1,
            "name": name,
            "model": {"vocab_size": 64, "d_model": 128, "n_layers": 1, "context": 4096, "norm": "rmsnorm"},
            "mixers": {"only": mixer},
            "blocks": {"main": {"mixer": use, "mlp": {"use": "swiglu", "d_ff": 64}}},
            "layers": ["1 main"],
        }
    )


def recurrence_kernels(graph: Graph, target: Target) -> list[Kernel]:
    """The kernels of the recurrence of such a model, in chunks that fit the target."""
    cut = fit_chunks(graph, target)
    files = {f"{name}_kernels.py" for name in recurrence_kinds(cut)}
    return [kernel for kernel in kernels_of(cut, target) if kernel.file in files]


def entry(fits: Iterable[Fit], chunk: int | None = None) -> dict[str, Any]:
    """One cell: how the class runs, its gradients, and each kernel's figures.

    chunk: tokens of one where they are fewer than 64.
    """
    found = list(fits)
    form = "walk" if all(fit.fits for fit in found) else "E501"
    if all(fit.role == "decode" for fit in found):
        form = "torch form"
    if any(fit.found is None for fit in found):
        form = "E502"
    kernels: dict[str, Any] = {}
    for fit in found:
        if fit.case and fit.fits:
            continue  # the figures are those of the plain case
        used = fit.found
        figures = (
            {}
            if used is None
            else {
                "registers": used.registers,
                "stack": used.stack,
                "spills": used.spills,
                "shared": used.shared,
                "matrix": sum(used.matrix.values()),
            }
        )
        kernels[fit.title] = figures | ({} if fit.fits else {"reason": fit.reason})
    back = "walk" if any(fit.role == "walk_again" for fit in found) else "torch form"
    return {"form": form, "gradients": back, **({"chunk": chunk} if chunk else {}), "kernels": kernels}


def entries(target: Target, cells: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """The entries of some classes at some sizes, compiled together."""
    planned = [recurrence_kernels(model(name, size, size), target) for name, size in cells]
    flat = [kernel for kernels in planned for kernel in kernels]
    fits = iter(verify(flat, target, lambda done, total: _tell(target, done, total)))
    return [entry([next(fits) for _ in kernels], _chunk(kernels)) for kernels in planned]


def _chunk(kernels: Sequence[Kernel]) -> int | None:
    """The tokens of a chunk where a class has fewer of them than elsewhere."""
    return next((int(C) for kernel in kernels if (C := kernel.constants.get("C")) not in (None, 64)), None)  # type: ignore[arg-type]


def renew(found: dict[str, dict[str, Any]], target: Target, sizes: Sequence[int]) -> None:
    """Compile the classes at some sizes and put their entries into `found`: class -> size -> entry."""
    cells = [(name, size) for name in CLASSES for size in sizes_of(target.name) if size in sizes]
    for (name, size), each in zip(cells, entries(target, cells)):
        of_class = found.setdefault(name, {})
        of_class[str(size)] = each
        found[name] = {key: of_class[key] for key in sorted(of_class, key=int)}


def page(results: Mapping[str, Any]) -> str:
    """The results as a page."""
    targets = results["targets"]
    lines = [
        "# Kernels: what runs where",
        "",
        "<!-- Written by `make kernels`, which compiles what stands here; nothing here was run. -->",
        "",
        f"Every class of recurrence, compiled ahead of time by Triton {results['triton']} in bf16 for every target,",
        "at K = V = the size named. A cell says how the class runs there, and of its kernels the most bytes of local",
        "memory a thread (128 may be) and of shared memory a block, those of its gradients included; where gradients",
        "run otherwise it says so. `archc kernels SPEC --target T` says the same of a model.",
        "",
        "- **walk**: Triton kernels that carry the state from chunk to chunk, of 64 tokens or as many as are named;",
        "  with few heads in spans beside each other, which is what stands here for a form parallel over chunks.",
        "- **torch form**: no kernels are made for it; the form over chunks in PyTorch runs.",
        "- **E501**: a kernel does not fit. `--allow-torch` builds the torch form instead.",
        "- **E502**: Triton does not compile a kernel, or not in the time that it has.",
        "",
    ]
    for size in (*SIZES, *LARGE):
        shown = [name for name in targets if any(str(size) in entries for entries in targets[name].values())]
        if not shown:
            continue
        lines += [
            f"## K = V = {size}",
            "",
            f"| class | {' | '.join(shown)} |",
            "|---" * (len(shown) + 1) + "|",
        ]
        for name in CLASSES:
            lines.append(
                f"| `{name}` | {' | '.join(_cell(targets[t][name].get(str(size))) for t in shown)} |"
            )
        lines.append("")
    absent = _absent(targets)
    if rows_only := results.get("rows_only"):
        absent.append(f"- Launches on packed sequences, at every size: {', '.join(rows_only)}")
    if absent:
        lines += ["## Not compiled", "", *absent]
    return "\n".join(lines).rstrip("\n") + "\n"


def _absent(targets: Mapping[str, Any]) -> list[str]:
    """A line for each promised size at which the classes were not compiled for some targets."""
    lines = []
    for size in (*SIZES, *LARGE):
        missing = [
            f"{name}{f' ({count} of {len(CLASSES)} classes)' if count < len(CLASSES) else ''}"
            for name in target_names()
            if size in sizes_of(name)
            and (count := sum(str(size) not in targets.get(name, {}).get(each, {}) for each in CLASSES))
        ]
        lines += [f"- K = V = {size}: {', '.join(missing)}"] if missing else []
    return lines


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    figures = [kernel for kernel in found["kernels"].values() if "stack" in kernel]
    if not figures:
        return str(found["form"])
    stack, shared = (max(kernel[name] for kernel in figures) for name in ("stack", "shared"))
    form = f"{found['form']}, chunk {found['chunk']}" if "chunk" in found else found["form"]
    form += ", gradients in the torch form" if found["gradients"] != "walk" else ""
    return f"{form}: {stack:,} B, {shared / 1024:.0f} KB"


def _tell(target: Target, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{target.title}: {done} of {total} kernels compiled", end=end, file=sys.stderr, flush=True)


def main(words: list[str]) -> None:
    """Compile and write."""
    file = ROOT / "docs" / "kernels.json"
    version = triton_version()
    results: dict[str, Any] = {"triton": version, "targets": {}}
    if file.exists() and (before := json.loads(file.read_text(encoding="utf-8")))["triton"] == version:
        results = before  # one page, one version
    names = [word for word in words if not word.isdigit()]
    sizes = [int(word) for word in words if word.isdigit()]
    for name in names or target_names():
        renew(results["targets"].setdefault(name, {}), load_target(name), sizes or (*SIZES, *LARGE))
        results["targets"] = dict(sorted(results["targets"].items()))
        results["rows_only"] = [each for each in results.get("rows_only", []) if each != name]
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (ROOT / "docs" / "kernels.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
