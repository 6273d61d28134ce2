"""All kernels of a model on a target, each once."""

from __future__ import annotations

from archc.graph.types import Graph
from archc.kernels.conv import conv_kernels
from archc.kernels.declared import declared_kernels
from archc.kernels.fusing.decode import token_kernels
from archc.kernels.gates import gate_kernels
from archc.kernels.kernel import Kernel
from archc.kernels.recurrence import recurrence_kernels, uses_of
from archc.kernels.rowwise import rowwise_kernels
from archc.kernels.targets import Target
from archc.tiles.kind import recurrence_name


def kernels_of(graph: Graph, target: Target, dtype: str = "bf16") -> tuple[Kernel, ...]:
    """The kernels that a model launches on a target, as they are compiled ahead of time."""
    found: list[Kernel] = []
    for kind, uses in uses_of(graph).items():
        found += recurrence_kernels(kind, recurrence_name(kind), uses, target, dtype)
    found += [*conv_kernels(graph, dtype), *rowwise_kernels(graph, dtype, target.warp_size)]
    found += [*gate_kernels(graph, dtype, target.warp_size), *token_kernels(graph, dtype)]
    found += declared_kernels(graph, dtype, target.warp_size)
    once = {repr((k.file, k.name, k.signature, k.constants)): k for k in found}
    return tuple(once.values())
