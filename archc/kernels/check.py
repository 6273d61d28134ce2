"""Whether the kernels of a model fit its target, and what then runs in the torch form."""

from __future__ import annotations

from collections.abc import Callable

from archc.graph.types import Graph
from archc.kernels.compile import triton_version, verify
from archc.kernels.fit import misfits
from archc.kernels.plan import kernels_of
from archc.kernels.targets import Target
from archc.spec.diagnostics import SpecError

CHUNKED = ("prepare", "walk", "walk_ahead", "carry", "walk_back_ahead", "walk_back", "walk_again")


def unfit(
    graph: Graph, target: Target, allow_torch: bool, progress: Callable[[int, int], None] | None = None
) -> frozenset[str] | None:
    """The classes of recurrence whose form over chunks does not fit the target, or None where Triton is missing.

    Raises SpecError, at the lines that asked for the kernels, for any that does not fit unless `allow_torch`, and for
    those that have no torch form to fall back on.
    """
    if triton_version() is None:
        return None
    fits = verify(kernels_of(graph, target), target, progress)
    refused = [fit for fit in fits if not fit.fits]
    if allow_torch:
        chunked = [fit for fit in refused if fit.role in CHUNKED]
        refused = [fit for fit in refused if fit.role not in CHUNKED]
    else:
        chunked = []
    if refused:
        raise SpecError(misfits(refused, target))
    return frozenset(fit.file.removesuffix("_kernels.py") for fit in chunked)
