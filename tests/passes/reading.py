"""Reads a graph of elementwise operations as torch would run it, from the formats that the printer uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from archc.graph.functions import FUNCTIONS
from archc.graph.types import Ref, Subgraph
from archc.spec import statics
from archc.spec.diagnostics import Reporter
from templates.runtime.initial import inverse_softplus
from templates.runtime.precision import wide

SCOPE = {"torch": torch, "F": F, "inverse_softplus": inverse_softplus, "wide": wide}


def apply(name: str, *operands: Tensor) -> Tensor:
    """One function of the table on tensors, through the text that is printed for it."""
    names = [f"v{index}" for index in range(len(operands))]
    found: Tensor = eval(FUNCTIONS[name].torch.format(*names), dict(SCOPE), dict(zip(names, operands)))
    return found


def evaluate(graph: Subgraph, x: Tensor, output: Ref) -> Tensor:
    """The value of `output` where every input of the body is `x`."""
    values: dict[Ref, Tensor] = {}
    for node in graph.nodes:
        operands = [values[ref] for ref in node.inputs if ref in values]
        if len(operands) < len(node.inputs):
            continue
        if node.op == "input":
            values[Ref(node.id)] = x
        elif node.op == "static":
            number = statics.evaluate(node.attrs["expr"], {}, Reporter())
            assert number is not None and not isinstance(number, (str, bool))
            values[Ref(node.id)] = torch.as_tensor(float(number), dtype=x.dtype)  # type: ignore[arg-type]
        elif node.op == "elementwise":
            values[Ref(node.id)] = apply(node.attrs["function"], *operands)
    return values[output]
