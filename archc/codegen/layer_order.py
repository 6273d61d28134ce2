"""The order of a model's layers, as the body of its `layer_classes` and in words."""

from __future__ import annotations

from collections.abc import Mapping

from archc.graph.types import Graph, Run


def layer_lines(graph: Graph, classes_of: Mapping[str, str]) -> tuple[list[str], str]:
    """The body of `layer_classes`, and the order of the layers in words."""

    def items(runs: tuple[Run, ...]) -> str:
        return (
            " + ".join(
                f"[{classes_of[run.module]}]" + (f" * {run.count}" if run.count > 1 else "") for run in runs
            )
            or "[]"
        )

    def words(runs: tuple[Run, ...]) -> str:
        return ", ".join(f"{run.count} {classes_of[run.module]}" for run in runs)

    classes = {*graph.runs, *graph.cycle, *graph.tail}
    if len({run.module for run in classes}) == 1:
        name = classes_of[next(iter(classes)).module]
        return [f"return [{name}] * n_layers"], f"{name} in every layer"
    head = words(graph.runs) + ", then " if graph.runs and graph.cycle else words(graph.runs)
    cycle_keys = [run.module for run in graph.cycle for _ in range(run.count)]
    tail_keys = [run.module for run in graph.tail for _ in range(run.count)]
    if graph.cycle and tail_keys == cycle_keys[: len(tail_keys)]:
        lines = [f"cycle: list[type[nn.Module]] = {items(graph.cycle)}"]
        if graph.runs:
            lines += [
                f"head: list[type[nn.Module]] = {items(graph.runs)}",
                "rest = range(max(n_layers - len(head), 0))",
                "return (head + [cycle[index % len(cycle)] for index in rest])[:n_layers]",
            ]
        else:
            lines.append("return [cycle[layer % len(cycle)] for layer in range(n_layers)]")
        return lines, f"{head}{words(graph.cycle)} in turn"

    def entries(runs: tuple[Run, ...]) -> list[str]:
        """Entries of one list: unpacked, so that the list's own type holds for classes of every kind."""
        names = [(classes_of[run.module], run.count) for run in runs]
        return [name if count == 1 else f"*[{name}] * {count}" for name, count in names]

    parts = entries(graph.runs)
    parts += [f"*[{', '.join(entries(graph.cycle))}] * {graph.repeats}"] if graph.cycle else []
    parts += entries(graph.tail)
    lines = [
        f"classes: list[type[nn.Module]] = [{', '.join(parts)}]",
        "if len(classes) != n_layers:",
        '    raise ValueError(f"the layers were listed one by one: {len(classes)}, not {n_layers}")',
        "return classes",
    ]
    text = head + (f"{graph.repeats} times ({words(graph.cycle)})" if graph.cycle else "")
    return lines, text + (f", then {words(graph.tail)}" if graph.tail else "")
