"""Timing that can be believed: inputs rotated beyond the cache, sides in turns, medians of rounds, a budget."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


TIME_UP = "the time was up"
DEVICE_FAILED = "the device had failed before"
ENDED = "the run ended here"


@dataclass(frozen=True, slots=True)
class Side:
    """One of those compared. `run` does the whole work once, on the copy of the inputs with that number."""

    name: str
    run: Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Figure:
    """Seconds of one run: the median of the rounds, the fastest and the slowest round; bytes that a run needs."""

    seconds: float
    low: float
    high: float
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """A peer's time over ours in the same round: the median, the smallest and the largest."""

    median: float
    low: float
    high: float


@dataclass(slots=True)
class Result:
    """One case. The first side is ours.

    why_not: why there are no figures, of a side by its name, of the whole case as "case".
    """

    group: str
    case: str
    what: str
    sides: dict[str, Figure] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)
    tokens_per_second: dict[str, float] = field(default_factory=dict)
    bandwidth_share: float | None = None  # of the copy bandwidth: the least bytes of the case over our time
    matrix_share: float | None = None  # of the matrix rate: the FLOP of the case over our time
    difference: dict[str, float] = field(default_factory=dict)  # of a peer's output, over our largest element
    rounds: int = 0

    @property
    def left_out(self) -> bool:
        """Whether the run ended before this case, which another run may take up."""
        return self.why_not.get("case") in (TIME_UP, DEVICE_FAILED)


class Clock(Protocol):
    """Measures work on a device."""

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the device takes for it."""
        ...

    def peak(self, work: Callable[[], object]) -> int | None:
        """Bytes that the work allocates at most beyond what is there, if the device tells."""
        ...

    def forget(self) -> None:
        """Give memory back after a failure."""
        ...

    def alive(self) -> bool:
        """Whether the device still works: after an access outside of memory nothing does in this process."""
        ...


class WallClock:
    """Time on a CPU: for trying out the bench, not for figures."""

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the work takes here."""
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def peak(self, work: Callable[[], object]) -> int | None:
        """A CPU does not tell."""
        return None

    def forget(self) -> None:
        """Nothing is kept."""

    def alive(self) -> bool:
        """A CPU does."""
        return True


class CudaClock:
    """Time between two events on a GPU's stream; where the CPU is the slower one, that shows."""

    def seconds(self, work: Callable[[], object]) -> float:
        """Between an event before the work and one after it."""
        import torch

        events: Any = torch.cuda.Event
        first, last = events(enable_timing=True), events(enable_timing=True)
        torch.cuda.synchronize()
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        return float(first.elapsed_time(last)) * 1e-3

    def peak(self, work: Callable[[], object]) -> int | None:
        """What the caching allocator has handed out at most."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated()) - before

    def forget(self) -> None:
        """Empty the caching allocator."""
        import gc

        import torch

        gc.collect()
        with contextlib.suppress(RuntimeError):  # of a device that failed
            torch.cuda.empty_cache()

    def alive(self) -> bool:
        """Whether waiting for the device raises what a kernel did to it."""
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True


class Budget:
    """Seconds of wall time that a bench may take."""

    def __init__(self, seconds: float) -> None:
        self.total = seconds
        self.began = time.monotonic()

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def left(self) -> float:
        """Seconds to the end, below zero after it."""
        return self.total - self.spent()


def clock_for(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else WallClock()


def compare(
    result: Result, sides: Sequence[Side], copies: int, clock: Clock, rounds: int, least: float = 0.02
) -> Result:
    """Time the sides in turns and fill in `result`. One timing covers at least `least` seconds of runs.

    A side that raises is left out from then on and its error noted; without the first side there is no ratio.
    """
    counts: dict[str, int] = {}
    peaks: dict[str, int | None] = {}
    times: dict[str, list[float]] = {side.name: [] for side in sides}

    def attempt(side: Side, work: Callable[[Side], None]) -> None:
        if side.name in result.why_not:
            return
        try:
            work(side)
        except Exception as error:  # a peer that fails or memory that runs out costs its own figure only
            text = str(error).splitlines()
            result.why_not[side.name] = f"{type(error).__name__}: {text[0] if text else ''}"
            clock.forget()

    def prepare(side: Side) -> None:
        for number in range(2):  # compiles, fills caches
            side.run(number % copies)
        peaks[side.name] = clock.peak(lambda: side.run(0))
        once = clock.seconds(lambda: side.run(1 % copies))
        counts[side.name] = min(max(round(least / max(once, 1e-9)), 1), 100)

    def measure(side: Side) -> None:
        count = counts[side.name]

        def runs() -> None:
            for number in range(count):
                side.run(number % copies)  # not kept: the next run takes the same memory again

        times[side.name].append(clock.seconds(runs) / count)

    for side in sides:
        attempt(side, prepare)
    for _ in range(rounds):
        for side in sides:
            attempt(side, measure)
    ours = times[sides[0].name] if sides[0].name not in result.why_not else []
    for side in sides:
        if side.name not in result.why_not:
            taken = times[side.name]
            figure = Figure(statistics.median(taken), min(taken), max(taken), peaks[side.name])
            result.sides[side.name] = figure
            if ours and side is not sides[0]:
                ratios = [b / a for a, b in zip(ours, times[side.name])]
                result.ratios[side.name] = Ratio(statistics.median(ratios), min(ratios), max(ratios))
    result.rounds = rounds
    return result


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """The same step, recorded as a CUDA graph and replayed."""
    import torch

    cuda: Any = torch.cuda
    stream = cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], object] = graph.replay
    return replay


def copies_for(device: torch.device, bytes_of_inputs: int) -> int:
    """How many copies of the inputs the cache cannot hold: three times its size, at least two."""
    import torch

    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return min(max(-(-3 * cache // max(bytes_of_inputs, 1)), 2), 64)


def copy_bandwidth(device: torch.device, clock: Clock, size: int) -> float:
    """Bytes a second, read and written, of copying `size` bytes: the best of five."""
    import torch

    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / min(clock.seconds(lambda: target.copy_(source)) for _ in range(5))


def matrix_rate(device: torch.device, clock: Clock, size: int, dtype: torch.dtype) -> float:
    """FLOP a second of a square matrix product: the best of five."""
    import torch

    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = a @ b
    return 2 * size**3 / min(clock.seconds(lambda: torch.mm(a, b, out=out)) for _ in range(5))
