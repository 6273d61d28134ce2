"""Whether a compiled kernel fits its target: what was found in it, held against the target's limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from archc.kernels.kernel import Kernel
from archc.kernels.targets import Target
from archc.spec.diagnostics import NOWHERE, Diagnostic, Span

STACK_LIMIT = 128  # bytes of local memory a thread: a few registers' worth outside of loops cost nothing
WIDE = 64  # rows that matrix instructions of Hopper and later have at least

# The beginnings of the names of each kind of matrix instruction, in PTX and in AMD's assembly.
MATRIX_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "mma": ("mma.sync",),
    "wgmma": ("wgmma.mma_async",),
    "tcgen05": ("tcgen05.mma",),
    "mfma": ("v_mfma", "v_smfmac"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What the compiler made of a kernel. Bytes and registers are those of one thread, shared memory of a block.

    stack: local memory. spills: the part of it that registers are moved to. local_loads, local_stores: instructions
    that use it, local_in_loops: those of them in a loop. tensor_memory: columns. matrix: matrix instructions by name.
    trap: the compiler gave up and put a trap in the kernel's place, and nothing else here means anything.
    """

    registers: int = 0
    stack: int = 0
    spills: int = 0
    local_loads: int = 0
    local_stores: int = 0
    local_in_loops: int = 0
    shared: int = 0
    tensor_memory: int = 0
    matrix: Mapping[str, int] = field(default_factory=dict)
    trap: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """One kernel on one target. found: None where Triton did not compile it, and `said` is what it said instead.

    reason: why it does not fit; empty for one that does. case: which of several ways to launch it this is.
    """

    file: str
    name: str
    role: str
    target: str
    triton: str
    found: Found | None
    reason: str
    said: str = ""
    span: Span | None = None
    case: str = ""

    @property
    def title(self) -> str:
        """Its name, with the case where it is not the plain one."""
        return f"{self.name} ({self.case})" if self.case else self.name

    @property
    def fits(self) -> bool:
        """Whether it may be launched on the target."""
        return not self.reason

    @property
    def verdict(self) -> str:
        """ "fits", or why not."""
        return self.reason or "fits"


def judge(kernel: Kernel, target: Target, found: Found | None, triton: str, said: str = "") -> Fit:
    """Hold what was found in a compiled kernel against the limits of its target."""
    reason = "Triton does not compile it" if found is None else "; ".join(_reasons(kernel, target, found))
    return Fit(
        kernel.file,
        kernel.name,
        kernel.role,
        target.name,
        triton,
        found,
        reason,
        said,
        kernel.span,
        kernel.case,
    )


def misfits(fits: Iterable[Fit], target: Target) -> list[Diagnostic]:
    """An error for each kernel that does not fit, at the line of the spec that asked for it."""
    return [_diagnostic(fit, target) for fit in fits if not fit.fits]


def _reasons(kernel: Kernel, target: Target, found: Found) -> list[str]:
    reasons = []
    if found.shared > target.shared_memory:
        reasons.append(f"it needs {found.shared:,} bytes of shared memory of {target.shared_memory:,}")
    if found.tensor_memory > target.tensor_memory:
        reasons.append(
            f"it needs {found.tensor_memory:,} columns of tensor memory of {target.tensor_memory:,}"
        )
    if found.trap:
        return [*reasons, "the compiler has put a trap in its place"]
    if found.stack > STACK_LIMIT:
        reasons.append(f"it keeps {found.stack:,} bytes in local memory where {STACK_LIMIT} may be")
    names = MATRIX_INSTRUCTIONS[target.matrix_instruction]
    sizes = [kernel.constants.get(name, WIDE) for name in ("BLOCK_K", "COLUMNS")]
    if kernel.role in ("walk_ahead", "walk_back_ahead") and all(
        isinstance(size, int) and size < WIDE for size in sizes
    ):
        names = (*names, *MATRIX_INSTRUCTIONS["mma"])  # the only products are as small as the state
    if kernel.matrix and not any(name.startswith(names) for name in found.matrix):
        reasons.append(f"it has no {target.matrix_instruction} instructions")
    return reasons


def _diagnostic(fit: Fit, target: Target) -> Diagnostic:
    span, kernel = fit.span or NOWHERE, f"the kernel `{fit.title}` of {fit.file}"
    if fit.found is None:
        return Diagnostic(
            "E502",
            f"Triton {fit.triton} does not compile {kernel} for {target.title}",
            span,
            note=fit.said,
            help="please report it; `--allow-torch` builds the torch form of this operation",
        )
    note, ways = (
        f"compiled by Triton {fit.triton} for {target.arch}",
        "take narrower heads or a smaller `chunk=`",
    )
    if target.screened and fit.triton not in target.screened:
        note += f"; how kernels are cut there was chosen with Triton {' and '.join(target.screened)}"
        ways = "take that Triton, narrower heads or a smaller `chunk=`"
    return Diagnostic(
        "E501",
        f"{kernel} does not fit {target.title}: {fit.reason}",
        span,
        note=note,
        help=f"{ways}; `--allow-torch` builds the torch form of this operation",
    )
