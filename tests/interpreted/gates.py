"""The elementwise regions of a model as a package has them, their kernels in the place of what runs on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from archc.codegen.format import format_files
from archc.codegen.package import runtime_path
from archc.graph.costs import Sizes
from archc.graph.types import Graph, Module
from archc.kernels.fusing.gate_files import gate_files, once
from archc.kernels.fusing.gate_view import Gate
from archc.kernels.fusing.gates import gates_of
from archc.printing.letters import assign_letters
from tests.interpreted.modules import IMPORTED
from tests.support.imports import imported


def load_gates(graph: Graph, folder: Path) -> tuple[SimpleNamespace, list[tuple[Module, Gate]]]:
    """The modules `gates` and `gates_kernels`, and each region with a module of the graph that has it."""
    found = gates_of(graph, assign_letters(graph))
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    pending = []
    for path, text in format_files(gate_files(once(found))).items():
        (folder / path).write_text(text)
        pending += IMPORTED.findall(text)
    while pending:
        target = folder / f"{pending.pop()}.py"
        if not target.exists():
            target.write_text(runtime_path(target.stem).read_text())
            pending += IMPORTED.findall(target.read_text())
    gates, kernels = (imported(f"{folder.name}.{file}", folder.parent) for file in ("gates", "gates_kernels"))
    loaded = SimpleNamespace(gates=gates, kernels=kernels)
    register(loaded.gates)
    which = {gate.name: (graph.modules[key], gate) for key, gates in found.items() for gate in gates}
    return loaded, list(which.values())


def register(gates: Any) -> None:
    """Let the operations of the module run on a CPU."""
    for operation in list(vars(gates).values()):
        if isinstance(operation, CustomOpDef):
            operation.register_kernel("cpu")(operation._init_fn)


def draw(
    module: Module,
    gate: Gate,
    tokens: Sequence[int],
    dtype: torch.dtype = torch.float32,
    values: Tensor | None = None,
) -> tuple[list[Tensor], list[float]]:
    """Operands of a region, float32 where the model has that anyway; and its static numbers.

    `values`: what operands are made of in turn, in place of normal numbers; each begins one further on.
    """
    generator = torch.Generator().manual_seed(3)
    sizes = Sizes(module.values)
    operands = []
    for number, operand in enumerate(gate.operands):
        type_ = module.subgraph.type_of(operand.ref)
        shape = [*(tokens if operand.per_token else ()), *(sizes.axis(axis) for axis in type_.axes)]
        if values is None:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            count = max(torch.Size(shape).numel(), 1)
            x = values.roll(-number).repeat(count // len(values) + 1)[:count].reshape(shape)
        operands.append(x.to(torch.float32 if operand.single else dtype))
    return operands, [float(sizes.number(expr)) for expr in gate.numbers.values()]


def results(function: Any, operands: Sequence[Tensor], numbers: Sequence[float]) -> list[Tensor]:
    """What a function gives and the gradients of its operands, of slopes that depend on the results' shapes alone."""
    given = [x.detach().clone().requires_grad_() for x in operands]
    made = function(*given, *numbers)
    made = [made] if isinstance(made, Tensor) else list(made)
    generator = torch.Generator().manual_seed(7)
    # Equal in every dtype, and positive: a sum over tokens of either sign has few digits in float32 whoever adds it.
    slopes = [(torch.rand(y.shape, generator=generator) + 0.5).half().to(y.dtype) for y in made]
    found = torch.autograd.grad(made, given, slopes, allow_unused=True)
    return [
        *(y.detach() for y in made),
        *(torch.zeros_like(x) if d is None else d for x, d in zip(given, found)),
    ]
