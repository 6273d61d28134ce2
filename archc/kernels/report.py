"""What `archc kernels` says of each kernel of a model: whether it fits, and what bounds its time from below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from archc.graph.types import Graph
from archc.kernels.bounds import Bounds, Work, bounds, plain_bounds
from archc.kernels.fit import Fit
from archc.kernels.kernel import Kernel
from archc.kernels.targets import Target
from archc.kernels.torch_forms import torch_forms
from archc.kernels.work import work_of
from archc.tiles.kind import RecurrenceKind


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One kernel: how it came out, its bounds where its work is counted, and which of them binds."""

    fit: Fit
    fits: bool
    verdict: str
    bounds: Bounds | None
    binding: str | None


@dataclass(frozen=True, slots=True)
class KernelsReport:
    """All kernels of a model for one target.

    triton: the version that compiled them, None if there were none. torch_forms: what has no kernels, and why.
    """

    target: str
    triton: str | None
    fits: bool
    kernels: tuple[KernelReport, ...]
    torch_forms: tuple[str, ...]


def report(graph: Graph, kernels: Sequence[Kernel], fits: Sequence[Fit], target: Target) -> KernelsReport:
    """Put together what is known of kernels that were compiled."""
    kinds = recurrence_kinds(graph)
    rows = []
    for kernel, fit in zip(kernels, fits):
        found = kernel_bounds(kernel, kinds, target)
        rows.append(KernelReport(fit, fit.fits, fit.verdict, found, None if found is None else found.binding))
    return KernelsReport(
        target.name,
        fits[0].triton if fits else None,
        all(fit.fits for fit in fits),
        tuple(rows),
        torch_forms(graph, target),
    )


def recurrence_kinds(graph: Graph) -> dict[str, RecurrenceKind]:
    """The classes of a model's recurrences by the name that their files have."""
    from archc.tiles.kind import recurrence_name

    nodes = (node for module in graph.modules.values() for node in module.subgraph.nodes)
    kinds: Iterable[RecurrenceKind] = (node.attrs["kind"] for node in nodes if node.op == "recurrence")
    return {recurrence_name(kind): kind for kind in kinds}


def kernel_bounds(kernel: Kernel, kinds: Mapping[str, RecurrenceKind], target: Target) -> Bounds | None:
    """The bounds of a kernel of a recurrence or entry by entry; None of one whose work is not counted."""
    if kernel.moved:
        return plain_bounds(target, Work(kernel.moved, kernel.flops, kernel.exponentials, 0.0))
    kind = kinds.get(kernel.file.removesuffix("_kernels.py"))
    sizes = {name: kernel.constants.get(name) for name in ("K", "V", "COLUMNS", "H")}
    K, V, columns, heads = (value if isinstance(value, int) else None for value in sizes.values())
    if kind is None or K is None:
        return None
    V = V or K  # a kernel that is not told V has nothing of that size
    rows = next((kernel.signature[name] for name in ("q", "k", "v") if name in kernel.signature), "*bf16")
    dtype = str(rows).removeprefix("*")
    itemsize = 4 if dtype == "fp32" else 2
    handed = "qk" in kernel.signature  # scores that a walk with its state in halves does not make itself
    work = work_of(kind, kernel.role, K, V, columns, itemsize, halves=handed)
    if work is None or not kernel.matrix:  # token by token there is no product of matrices
        return None if work is None else plain_bounds(target, work)
    return bounds(target, work, dtype=dtype, heads=heads or 1)
