"""All kernels of a model on a target, each once."""

from __future__ import annotations

from dataclasses import replace

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

SIZES = ("K", "V", "H")  # what uses of one class differ in for the most part


def kernels_of(graph: Graph, target: Target, dtype: str = "bf16") -> tuple[Kernel, ...]:
    """The kernels that a model launches on a target, as they are compiled ahead of time."""
    found: list[Kernel] = []
    for kind, uses in uses_of(graph).items():
        found += recurrence_kernels(kind, recurrence_name(kind), uses, target, dtype)
    found += [*conv_kernels(graph, dtype), *rowwise_kernels(graph, dtype, target.warp_size)]
    found += [*gate_kernels(graph, dtype, target.warp_size), *token_kernels(graph, dtype)]
    found += declared_kernels(graph, dtype, target.warp_size)
    once = {repr((k.file, k.name, k.signature, k.constants)): k for k in found}
    return told_apart(tuple(once.values()))


def told_apart(kernels: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Kernels of one class for several sizes, with those that differ in their case: else they have one title."""
    alike: dict[tuple[str, str, str], list[Kernel]] = {}
    for kernel in kernels:
        alike.setdefault((kernel.file, kernel.name, kernel.case), []).append(kernel)

    def named(kernel: Kernel) -> Kernel:
        others = alike[kernel.file, kernel.name, kernel.case]
        differing = [
            name
            for name, value in kernel.constants.items()
            if any(other.constants[name] != value for other in others)
        ]
        sizes = [name for name in SIZES if name in differing] or differing
        words = [f"{name} {kernel.constants[name]}" for name in sizes]
        return replace(kernel, case=", ".join([*([kernel.case] if kernel.case else []), *words]))

    return tuple(named(kernel) for kernel in kernels)
