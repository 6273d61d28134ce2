"""What of a model's recurrences has no kernels on a target, and why: it is said when they are built."""

from __future__ import annotations

import re

from archc.graph.types import Graph
from archc.kernels.compile import triton_version
from archc.kernels.recurrence import chunked, gradients_since, has_reverse, sizes_of, uses_of
from archc.kernels.targets import Target
from archc.tiles.kind import recurrence_name


def torch_forms(graph: Graph, target: Target) -> tuple[str, ...]:
    """A sentence for each class of recurrence that runs in its torch form, and for each whose gradients do.

    Some gradients do with the version of Triton that is installed here, and not with another.
    """
    triton = triton_version()
    found: dict[str, None] = {}
    for kind, uses in uses_of(graph).items():
        name, sizes = recurrence_name(kind), sizes_of(kind, uses, target)
        for use in uses:
            if reason := chunked(kind, use, target):
                found[f"{name}, K {use.K}, V {use.V}: torch form but for single tokens: {reason}"] = None
        if sizes and not has_reverse(kind, sizes, target):
            found[
                f"{name}: gradients in the torch form: no kernels for them are known to fit {target.title}"
            ] = None
        elif sizes and (since := gradients_since(kind, target)) and triton and _numbers(triton) < since:
            found[
                f"{name}: gradients in the torch form where Triton is {triton}, which has compiled them wrongly for "
                f"{target.title}; in kernels from {'.'.join(map(str, since))} on"
            ] = None
    return tuple(found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
