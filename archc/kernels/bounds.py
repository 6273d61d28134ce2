"""Four lower bounds of a kernel's time from what it does and what the target can do; a bound, not a time."""

from __future__ import annotations

from dataclasses import dataclass

from archc.kernels.targets import Target

NAMES = ("bytes", "flops", "exponentials", "chain")


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel does per token and head of the state.

    chain: FLOP of the matrix products of one program that wait for one another; all of the chain runs on one
    multiprocessor, however many there are.
    """

    bytes: float
    flops: float
    exponentials: float
    chain: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds per token and head; None where no public source gives the target's rate, or nothing is counted.

    bytes: over the bandwidth. flops: over the rate of matrix products. exponentials: over theirs. chain: the
    products of a program one after the other, while as many heads as there are walk beside it.
    """

    bytes: float
    flops: float | None
    exponentials: float | None
    chain: float | None

    @property
    def binding(self) -> str:
        """The name of the largest bound, the earliest of equal ones."""
        known = [name for name in NAMES if getattr(self, name) is not None]
        return max(known, key=lambda name: float(getattr(self, name)))

    @property
    def seconds(self) -> float:
        """The largest bound."""
        return float(getattr(self, self.binding))


def bounds(target: Target, work: Work, *, dtype: str = "bf16", heads: int = 1) -> Bounds:
    """The four bounds of some work. dtype: of the operands of matrix products. heads: that run side by side.

    With fewer programs than multiprocessors the chain binds before the sum of all products does.
    """
    rate = target.matrix_rate.get(dtype)
    return Bounds(
        work.bytes / target.bandwidth,
        None if rate is None else work.flops / rate,
        _exponentials(target, work),
        None if rate is None else work.chain * target.multiprocessors / rate / heads,
    )


def plain_bounds(target: Target, work: Work) -> Bounds:
    """The bounds of some work without matrix products, in float32: there is no chain of them."""
    rate = target.vector_rate
    flops = None if rate is None else work.flops / rate
    return Bounds(work.bytes / target.bandwidth, flops, _exponentials(target, work), 0.0)


def _exponentials(target: Target, work: Work) -> float | None:
    """Seconds of the special units, where their rate is known."""
    if target.exponentials is None or target.clock is None:
        return None
    return work.exponentials / (target.exponentials * target.multiprocessors * target.clock)
