"""`archc bench --cpu`: a built model's speed in tokens a second, beside a peer with the same weights."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.cli.measure_recurrence import TOKENS, recurrence_steps
from archc.spec.diagnostics import MachineError

if TYPE_CHECKING:
    import torch

PROMPT = 32  # tokens in the state before decoding starts
DECODE = 32  # decode steps that one timing covers


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time: `tokens` tokens for each of `batch_size` sequences, at once or one by one."""

    name: str
    batch_size: int
    tokens: int
    one_by_one: bool


@dataclass(frozen=True, slots=True)
class Timing:
    """A case, timed: tokens a second (medians), and the median of the speeds' ratios, ours to the peer's.

    Each ratio is of one round, in which the two follow each other.
    """

    case: str
    batch_size: int
    tokens: int
    ours: float
    peer: float | None
    ratio: float | None
    rounds: int
    ratios: tuple[float, float] | None = None  # the smallest and the largest of a round


@dataclass(frozen=True, slots=True)
class Bench:
    """Timings with what they depend on: machine, threads, versions, and how busy the machine was."""

    spec: str
    machine: str
    threads: int
    load: tuple[float, float]  # running processes before and after, the last minute's average
    versions: dict[str, str]
    timings: tuple[Timing, ...]


CASES = (
    Case("prefill", 1, 512, False),
    Case("decode", 1, DECODE, True),
    Case("decode", 8, DECODE, True),
)
RECURRENCE = Case("recurrence, forward and backward", 1, TOKENS, False)

Step = Callable[["torch.Tensor", object], object]  # tokens, cache -> cache


def measure(spec: Path, weights: Path | None, *, rounds: int, tell: Callable[[str], None]) -> Bench:
    """Build `spec`, load `weights` (a GGUF file) into it and into transformers' model, time both in turns.

    Without weights the model has random ones and there is no peer. `tell` is told what is under way. Every
    ratio compares two timings taken one right after the other. Raises `MachineError` where torch or the
    peer's package is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise MachineError("measuring needs torch: pip install 'archc-compiler[torch]'") from error
    from archc.output.load import load

    tell("building")
    busy = os.getloadavg()[0]
    torch.manual_seed(0)
    module = load(spec)
    model = module.Model().eval()
    peer = None
    if weights is not None:
        from archc.weights import load_gguf

        tell("loading weights")
        model.load(load_gguf(weights))
        tell("loading the peer")
        peer = _peer(weights)
    timings: list[Timing] = []
    with torch.inference_mode():
        for case in CASES:
            if case.one_by_one:
                model.prepare_decode()
            theirs = None if peer is None else _theirs(peer)
            timings.append(_time(case, _ours(case, model), theirs, rounds, tell))
    recurrence = recurrence_steps(module.__name__)
    if recurrence is not None:
        timings.append(_time(RECURRENCE, *recurrence, rounds, tell))
    return Bench(
        str(spec),
        _machine(),
        torch.get_num_threads(),
        (busy, os.getloadavg()[0]),
        _versions(),
        tuple(timings),
    )


def _time(
    case: Case, step: Step, peers_step: Step | None, rounds: int, tell: Callable[[str], None]
) -> Timing:
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds + 1):  # the first round warms up
        tell(f"{case.name}, batch {case.batch_size}: {number} of {rounds}")
        mine = _seconds(case, step)
        other = _seconds(case, peers_step) if peers_step is not None else None
        if number:
            ours.append(mine)
            if other is not None:
                theirs.append(other)
    count = case.batch_size * case.tokens
    ratios = [b / a for a, b in zip(ours, theirs)]
    return Timing(
        case.name,
        case.batch_size,
        case.tokens,
        count / statistics.median(ours),
        count / statistics.median(theirs) if theirs else None,
        statistics.median(ratios) if ratios else None,
        rounds,
        (min(ratios), max(ratios)) if ratios else None,
    )


def _seconds(case: Case, step: Step) -> float:
    """The wall time of the case's own tokens; what fills the cache before them is not counted."""
    import torch

    # The same tokens on both sides, low ones: every vocabulary has them.
    tokens = torch.randint(
        0, 100, (case.batch_size, PROMPT + case.tokens), generator=torch.Generator().manual_seed(1)
    )
    cache: object = None
    if case.one_by_one:
        cache = step(tokens[:, :PROMPT], cache)
    began = time.perf_counter()
    for piece in _pieces(case, tokens):
        cache = step(piece, cache)
    return time.perf_counter() - began


def _pieces(case: Case, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    if not case.one_by_one:
        yield tokens[:, PROMPT:]
        return
    for place in range(PROMPT, PROMPT + case.tokens):
        yield tokens[:, place : place + 1]


def _ours(case: Case, model: Any) -> Step:
    def step(tokens: torch.Tensor, cache: object) -> object:
        if cache is None:
            cache = model.init_state(batch_size=case.batch_size, max_length=PROMPT + case.tokens)
        model(tokens, state=cache)
        return cache

    return step


def _theirs(peer: Any) -> Step:
    def step(tokens: torch.Tensor, cache: object) -> object:
        return peer(tokens, past_key_values=cache, use_cache=True).past_key_values

    return step


def _peer(weights: Path) -> Any:
    import torch

    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MachineError("the peer needs transformers: pip install 'archc-compiler[hf,weights]'") from error
    peer: Any = AutoModelForCausalLM.from_pretrained(
        str(weights.parent), gguf_file=weights.name, dtype=torch.float32
    )
    return peer.eval()


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("archc-compiler", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
