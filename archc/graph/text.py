"""A graph as stable text, for people and for the fixtures of passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from archc.graph.calls import Pair
from archc.graph.types import Graph, Module, Node, Ref, Run, Subgraph
from archc.spec.axes import Axis
from archc.spec.expressions import Expr
from archc.spec.unparse import unparse


def graph_text(graph: Graph) -> str:
    """Every module with its nodes, then the order of the layers."""
    parts = [module_text(module) for module in graph.modules.values()]
    runs = [f"{run.module} x{run.count}" for run in graph.runs]
    if graph.cycle:
        runs.append(f"{graph.repeats} times ({_runs(graph.cycle)})")
    runs += [f"{run.module} x{run.count}" for run in graph.tail]
    return "\n".join([*parts, f"layers: {', '.join(runs)}", ""])


def _runs(runs: tuple[Run, ...]) -> str:
    return ", ".join(f"{run.module} x{run.count}" for run in runs)


def module_text(module: Module) -> str:
    """One module."""
    lines = [f"module {module.key}"]
    lines += [f"  decided {unparse(d.test)} = {'true' if d.value else 'false'}" for d in module.decisions]
    lines += [f"  slot {slot}: {', '.join(keys)}" for slot, keys in module.slots.items()]
    return "\n".join([*lines, subgraph_text(module.subgraph)])


def subgraph_text(graph: Subgraph) -> str:
    """`%3 = linear(%1) name=q ... : token [n_heads, head_dim]`, a line a node."""
    lines = [f"  {_node(node)}" for node in graph.nodes]
    named = ", ".join(f"{name}={_ref(ref)}" for name, ref in graph.equations.items())
    lines.append(f"  equations {named}")
    lines.append(f"  output {_ref(graph.output)}")
    if graph.exports:
        lines.append(f"  exports {', '.join(f'{name}={_ref(ref)}' for name, ref in graph.exports.items())}")
    if graph.losses:
        lines.append(f"  losses {', '.join(f'{name}={_ref(ref)}' for name, ref in graph.losses.items())}")
    if graph.updates:
        lines.append(f"  updates {', '.join(f'{name}={_ref(ref)}' for name, ref in graph.updates.items())}")
    if graph.carried:
        lines.append(f"  carried {', '.join(f'{name}={_ref(ref)}' for name, ref in graph.carried.items())}")
    return "\n".join([*lines, ""])


def _node(node: Node) -> str:
    attrs = "".join(f" {key}={_value(value)}" for key, value in _shown(node.attrs).items())
    types = "; ".join(str(type_) for type_ in node.types)
    name = f" name={node.name}" if node.name else ""
    return f"%{node.id} = {node.op}({', '.join(_ref(ref) for ref in node.inputs)}){name}{attrs} : {types}"


def _shown(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that say something: not the absent ones."""
    return {key: value for key, value in attrs.items() if value not in (None, False, "", (), {})}


def _ref(ref: Ref) -> str:
    return f"%{ref.node}" + (f".{ref.index}" if ref.index else "")


def _value(value: Any) -> str:
    match value:
        case Ref():
            return _ref(value)
        case Expr():
            return f"({unparse(value)})"
        case Axis():
            return str(value)
        case Pair():
            return f"({unparse(value.expr)})"
        case tuple():
            return f"[{', '.join(_value(entry) for entry in value)}]"
        case Mapping():
            return f"{{{', '.join(f'{key}: {_value(entry)}' for key, entry in value.items())}}}"
        case bool():
            return "true" if value else "false"
    if is_dataclass(value) and not isinstance(value, type):
        shown = {field.name: getattr(value, field.name) for field in fields(value)}
        return f"{type(value).__name__}({', '.join(f'{k}={_value(v)}' for k, v in shown.items())})"
    return str(value)
