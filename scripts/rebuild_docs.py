"""Rebuild the pages of docs/ that list what is elsewhere; with --check, only say whether they are stale."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written by `make docs` from the sources; edit what it lists instead. -->\n\n"
INFINITE = float("inf")

KINDS = {
    "value": "a value: a name, an expression, a number",
    "values": "any number of values",
    "axes": "one axis or a list of axes",
    "pieces": "any number of axes or lists of axes",
    "static": "an expression known before the model runs",
    "word": "a bare word from a fixed list, never looked up",
    "words": "a list of such words",
    "pair": "an expression over a pair of tokens: `i`, `j`, and in a score `s`",
    "init": "an expression over random draws",
    "cut": "a list of values",
}
DRAWS = {
    "uniform": "between the two numbers",
    "log_uniform": "the exponential of a uniform draw between the logarithms of the two numbers",
    "normal": "with this mean and standard deviation",
    "truncated_normal": "with this mean and standard deviation, drawn again beyond two deviations",
    "orthogonal": "orthogonal rows or columns, times the gain (default 1)",
    "orthogonal_normal": "normal rows, orthogonal in blocks of as many as there are columns",
    "eye": "the identity",
    "zeros": "0 everywhere",
    "ones": "1 everywhere",
}
STATICS = {
    "ceil": "up to a whole number",
    "floor": "down to a whole number",
    "round": "to the nearest whole number, halves to the even one",
    "round_up": "`round_up(x, m)`: up to a multiple of m",
    "round_down": "`round_down(x, m)`: down to a multiple of m",
    "min": "of two numbers or more",
    "max": "of two numbers or more",
    "abs": "",
    "sqrt": "exact where the result is rational, else the nearest double",
    "exp": "the nearest double",
    "log": "the nearest double",
}


def table(*rows: tuple[str, ...]) -> list[str]:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def page(title: str, text: str, lines: list[str]) -> str:
    """A whole page."""
    return f"{NOTE}# {title}\n\n{text}\n\n" + "\n".join(lines).strip("\n") + "\n"


# -- errors -----------------------------------------------------------------------------------------------------


def errors_page() -> str:
    """Every error code with its title, linked to its page."""
    from archc.errors import titles

    groups = {
        "E10": "Reading the file",
        "E12": "Expressions",
        "E14": "Names",
        "E16": "Static arithmetic",
        "E20": "Sections and keys",
        "E21": "Looking things up",
        "E22": "Parameters and arguments",
        "E23": "Bodies",
        "E24": "Slots and blocks",
        "E25": "Layers",
        "E26": "Extending a spec",
        "E30": "Names in equations",
        "E31": "Calls",
        "E32": "What must be known before the model runs",
        "E33": "Equations together",
        "E34": "Axes",
        "E35": "Shapes",
        "E36": "Names of weights",
        "E37": "Attention and recurrences",
        "E39": "Commands",
        "E40": "Sweeps",
        "E90": "Writing the package",
    }
    lines: list[str] = []
    heading = ""
    for code, title in titles().items():
        wanted = next(name for start, name in reversed(groups.items()) if start <= code)
        if wanted != heading:
            heading = wanted
            lines += ["", f"## {heading}", ""]
        lines.append(f"- [{code}](../archc/errors/{code}.md): {title}")
    text = "`archc explain CODE` prints a page in the terminal: what it means, an example, and how to put it right."
    return page("Errors by code", text, lines)


# -- operations -------------------------------------------------------------------------------------------------


def operations_page() -> str:
    """Every operation with its signature and shape rule, every function, every draw."""
    from archc.operations.registry import operations

    text = (
        "What an equation can call. Brackets mark optional arguments; those with `=` are given by name. Shapes are\n"
        "feature axes: batch and tokens are always there and never written. What the words mean stands in\n"
        "[language.md](language.md)."
    )
    lines = ["Arguments are of these kinds:", "", *table(("kind", "what stands there"), *KINDS.items())]
    folder = ""
    for operation in operations().values():
        if not operation.signature.arguments:
            continue  # made by the compiler itself, never called
        module = importlib.import_module(type(operation).__module__)
        if module.__name__ != folder:
            folder = module.__name__
            heading = folder.rsplit(".", 1)[1]
            about = re.sub(r" \((language rule|docs/)[^)]*\)", "", str(module.__doc__).strip().split("\n")[0])
            lines += ["", f"## {heading}", "", _sentence(about.partition(": ")[2] or about)]
        lines += ["", f"### `{operation.name}({operation.signature})`", ""]
        lines += [*_paragraph(str(inspect.getdoc(type(operation)))), ""]
        rule = inspect.getdoc(operation.build) or ""
        if rule.startswith("Shapes: "):
            lines += [f"Shapes: {_axes_as_code(rule.removeprefix('Shapes: '))}", ""]
        kinds = ", ".join(f"`{a.name}` {a.kind}" for a in operation.signature.arguments)
        named = "; `name=` names its weights, `share=` says whose they are" if operation.weighted else ""
        lines.append(f"Arguments: {kinds}{named}.")
    return page("Operations and functions", text, [*lines, *_functions(), *_numbers()])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _paragraph(text: str) -> list[str]:
    return [line if "`" in line else line.replace("*", "\\*") for line in text.split("\n")]


def _axes_as_code(text: str) -> str:
    return f"`{text.rstrip('.')}`." if "[" in text and "`" not in text else text


def _functions() -> Iterator[str]:
    from archc.graph.functions import ANY, FUNCTIONS, OPERATORS

    yield from ("", "## Functions of the entries", "")
    yield "Operands align by the names of their axes; the operand with the most axes must hold those of the others."
    yield "Bounds are what archc knows of the result when it knows nothing of the operands; from them it proves that"
    yield "a decay is at most 0."
    yield ""
    rows = []
    for name, function in FUNCTIONS.items():
        if name in (*OPERATORS.values(), "neg") or function.boolean:
            continue
        operands = ["a", "b", "c"][: function.least]
        try:
            low, high = function.bounds(*[ANY] * function.least)
        except (OverflowError, ValueError):
            low, high = ANY
        bounds = "" if (low, high) == ANY or low != low else f"{_bound(low)} to {_bound(high)}"
        torch = function.torch.format(*operands)
        rows.append((f"`{name}({', '.join(operands)})`", f"`{torch}`", bounds))
    yield from table(("function", "in torch", "bounds"), *rows)
    yield ""
    operators = ", ".join(f"`{sign}`" for sign in OPERATORS)
    yield f"Operators: {operators}, unary `-`; comparisons `<`, `<=`, `>`, `>=`, `==`, `!=`, which may be chained;"
    yield "`and`, `or`, `not`. `a | f` is `f(a)`, and `a | f(b)` is `f(a, b)`."


def _bound(value: float) -> str:
    if abs(value) == INFINITE:
        return "infinity" if value > 0 else "minus infinity"
    return f"{value:g}"


def _numbers() -> Iterator[str]:
    from archc.elaboration.draws import DRAWS as KNOWN
    from archc.spec.statics import FUNCTIONS

    yield from (
        "",
        "## Starting values",
        "",
        "In `init=`, `bias_init=` and `init:` a weight's start is an expression:",
    )
    yield "draws take the shape of the weight, everything else aligns by the names of the axes."
    yield ""
    rows = []
    for name, (least, most) in KNOWN.items():
        arguments = ["a", "b"][:least] + [f"[{letter}]" for letter in ["gain"][: most - least]]
        call = f"{name}({', '.join(arguments)})" if most else name
        rows.append((f"`{call}`", DRAWS[name]))
    yield from table(("draw", "values"), *rows)
    yield from ("", "## Static arithmetic", "")
    yield "Sizes, defaults and conditions are worked out exactly, in rational numbers."
    yield ""
    yield from table(("function", "result"), *((f"`{name}`", STATICS[name]) for name in FUNCTIONS))


# -- library ----------------------------------------------------------------------------------------------------


def library_page() -> str:
    """Every entry of the library: title, source, parameters, what it keeps between tokens, what it costs."""
    from archc.cli.library import entries

    text = (
        "What ships with archc, in the language that you write: `archc library` lists it, `archc library NAME` prints\n"
        "an entry. A file of the same kind and name beside your spec takes its place."
    )
    lines: list[str] = []
    kind = ""
    headings = {
        "mixer": "Mixers",
        "mlp": "MLPs",
        "block": "Blocks",
        "function": "Functions",
        "model": "Models",
        "sweep": "Sweeps",
    }
    describe = {"model": _model, "sweep": _sweep}
    for entry in entries(ROOT / "docs"):
        if entry.kind != kind:
            kind = entry.kind
            lines += ["", f"## {headings[kind]}"]
        path = entry.path.relative_to(ROOT).as_posix()
        lines += ["", f"### [{entry.name}](../{path})", "", f"{entry.title or entry.name}."]
        if entry.source:
            lines[-1] += f" Source: {entry.source}."
        about = describe[kind](entry.path) if kind in describe else _body(entry.path, kind, entry.name)
        lines += ["", *about]
    return page("The library", text, lines)


def _model(path: Path) -> Iterator[str]:
    from archc.pipeline import cost

    found = cost(path)
    windows = f", {found.window_bytes:,} bytes of windows" if found.window_bytes else ""
    yield f"{found.parameters:,} parameters. In bfloat16 one sequence keeps {found.cache_bytes_per_token:,} bytes"
    yield f"of keys and values a token{windows}, and {found.state_bytes:,} bytes of state whatever its length."


def _sweep(path: Path) -> Iterator[str]:
    from archc.spec.diagnostics import Reporter
    from archc.sweeps.read import read_sweep

    report = Reporter()
    sweep = read_sweep(path, report, {})
    report.raise_if_any()
    assert sweep is not None
    for axis in sweep.axes:
        yield f"- {axis.name}: {', '.join(axis.values)}"


def _body(path: Path, kind: str, name: str) -> Iterator[str]:
    from archc.pipeline import load_spec, make_graph
    from archc.spec.diagnostics import Reporter
    from archc.spec.values import show

    report = Reporter()
    spec = load_spec(path, report)
    graph = make_graph(spec, report) if spec is not None else None
    report.raise_if_any()
    assert spec is not None and graph is not None
    modules = [
        module for module in graph.modules.values() if (module.body.kind, module.body.name) == (kind, name)
    ]
    body = modules[0].body if modules else spec.functions[name]
    if body.params:
        rows = []
        for param in body.params.values():
            values = " or ".join(param.choices) if param.choices else param.type
            default = "required" if param.required else _default(param.default, show)
            rows.append((f"`{param.name}`", values, default, param.help))
        yield from table(("parameter", "type", "default", ""), *rows)
        yield ""
    if kind in ("mixer", "mlp"):
        kept: dict[str, list[str]] = {}
        for dtype, text in dict.fromkeys(_memory(graph, modules[-1])):
            kept.setdefault(dtype, []).append(text)
        parts = "; ".join(f"{', '.join(texts)} in {dtype}" for dtype, texts in kept.items())
        yield f"Keeps for each sequence: {parts}." if kept else "Keeps nothing between tokens."
        if kind == "mixer":
            yield from ("", _forms(modules[-1], name))
    else:
        for equation in body.equations:
            yield f"    {', '.join(target.name for target in equation.targets)}: {equation.text}"


def _forms(module: object, mixer: str) -> str:
    """One line: which forms a mixer has and which laws hold, as `make library` found them."""
    from archc.graph.types import Module
    from archc.operations.registry import operations
    from tests.laws.subjects import EXCEPTIONS, OTHER_LAWS
    from tests.laws.ways import WAYS

    assert isinstance(module, Module)
    results = json.loads((ROOT / "docs" / "library_laws.json").read_text(encoding="utf-8")).get(mixer, {})
    passed = set(results.get("passed", ()))
    forms = [form for node in module.subgraph.nodes for form in operations()[node.op].forms]
    # A form counts when the laws that use it held.
    proofs = {
        "backward": "gradients",
        "decode": "decode",
        "segments": "packed_pieces",
        "compiled": "twelve lengths",
    }
    forms += [form for form, proof in proofs.items() if proof in passed]
    missing = [name for name in (*WAYS, *OTHER_LAWS) if name not in passed]
    text = (
        f"Forms: {', '.join(dict.fromkeys(forms))}. Laws: {len(passed)} of {len(WAYS) + len(OTHER_LAWS)} hold"
    )
    reasons = EXCEPTIONS.get(mixer, {})
    grouped: dict[str, list[str]] = {}
    for name in missing:
        grouped.setdefault(reasons.get(name, "not tested"), []).append(name)
    notes = [f"not {', '.join(names)}: {reason}" for reason, names in grouped.items()]
    return "; ".join([text, *notes]) + "."


def _default(value: object, show: object) -> str:
    from archc.spec.expressions import Expr
    from archc.spec.unparse import unparse

    text = unparse(value) if isinstance(value, Expr) else show(value)  # type: ignore[operator]
    return f"`{text}`"


def _memory(graph: object, module: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """What a body's operations keep, and those of its parts, in the names of its axes."""
    from archc.graph.types import Graph, Module
    from archc.operations.registry import operations

    assert isinstance(graph, Graph) and isinstance(module, Module)
    for node in module.subgraph.nodes:
        for state in operations()[node.op].states(node, module.subgraph):
            shape = [str(axis) for axis in state.shape]
            if state.slots is not None:
                shape.insert(0, "tokens" if state.slots == "all" else str(state.slots))
            dtype = "float32" if state.dtype == "float32" else "the model's dtype"
            yield dtype, f"`{prefix}{state.name} [{', '.join(shape)}]`"
    for slot, (key, *_) in module.slots.items():
        if graph.modules[key].body.kind == "part":
            yield from _memory(graph, graph.modules[key], f"{prefix}{slot}.")


PAGES: Mapping[str, object] = {
    "errors.md": errors_page,
    "library.md": library_page,
    "operations.md": operations_page,
}


def main() -> int:
    """Write the pages, or with --check compare them. Exit code 1 when one is stale."""
    sys.path.insert(0, str(ROOT))
    stale = []
    for name, make in PAGES.items():
        text = make()  # type: ignore[operator]
        path = ROOT / "docs" / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
            print(f"docs/{name}")
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
