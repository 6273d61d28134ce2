"""One run of the bench: every case within a time, what fails noted, all that was found so far kept after each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from archc.kernels.bench.cases import FULL, GROUPS, TINY, Scale, cases
from archc.kernels.bench.record import GpuBench, load
from archc.kernels.bench.session import Session, importable
from archc.kernels.bench.timing import DEVICE_FAILED, ENDED, TIME_UP, Result, copy_bandwidth, matrix_rate
from archc.spec.diagnostics import MachineError


def measure_gpu(
    spec: Path,
    *,
    target: str = "h100",
    device: str = "cuda",
    tiny: bool = False,
    seconds: float = 540.0,
    rounds: int = 7,
    groups: Sequence[str] = GROUPS,
    save: Path | None = None,
    resume: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> GpuBench:
    """Time what `groups` names within `seconds`; what does not fit is noted as such.

    save: a file that holds all results so far after each case. resume: what it holds already is not timed again.
    device "cpu" and `tiny` are for trying out. Raises MachineError without torch or the device, and where a kernel
    has made the device unusable, SpecError for mistakes in `spec`.
    """
    try:
        import torch
    except ImportError as error:
        raise MachineError("measuring needs torch: pip install 'archc-compiler[kernels]'") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError("torch sees no GPU here; --device cpu --tiny tries the bench out without figures")
    scale = TINY if tiny else FULL
    with tempfile.TemporaryDirectory(prefix="archc_bench_") as folder, importable(folder):
        session = Session(
            spec,
            target,
            torch.device(device),
            Path(folder),
            rounds=rounds,
            seconds=seconds,
            tell=tell,
        )
        if resume and save is not None and save.exists():
            session.resume(load(save))
        run_cases(session, scale, groups, save)
        return session.found


def run_cases(session: Session, scale: Scale, groups: Sequence[str], save: Path | None) -> None:
    """What the device can do at most, then every case of the groups."""
    session.tell("copy bandwidth and matrix rate")
    found, clock, device = session.found, session.clock, session.device
    known = {(result.group, result.case, result.what) for result in found.results}
    failed = False
    found.measured = {
        "copy_bandwidth": copy_bandwidth(device, clock, scale.copied),
        "matrix_rate": matrix_rate(device, clock, scale.square, session.dtype),
    }
    for case in cases(scale):
        if case.group not in groups or (case.group, case.name, case.what) in known:
            continue
        result = Result(case.group, case.name, case.what)
        found.results.append(result)
        left = session.budget.left()
        if failed or left <= 0:
            result.why_not["case"] = DEVICE_FAILED if failed else TIME_UP
            continue
        session.tell(f"{case.group}: {case.name}, {case.what} ({left:.0f} s left)")
        result.why_not["case"] = ENDED  # what stands there if it is killed in this case
        _keep(session, save)
        del result.why_not["case"]
        try:
            case.run(session, result)
        except Exception as error:  # the next case may do
            text = str(error).splitlines()
            result.why_not["case"] = f"{type(error).__name__}: {text[0] if text else ''}"
        failed = bool(result.why_not) and not clock.alive()
        clock.forget()
        _keep(session, save)
    _keep(session, save)
    if failed:
        raise MachineError("the device failed; --resume goes on with the other cases")


def _keep(session: Session, save: Path | None) -> None:
    """Bring what was found up to date, and write it."""
    session.found.take_means()
    session.found.seconds = round(session.budget.spent(), 1)
    if save is not None:
        session.found.save(save)
