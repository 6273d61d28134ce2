"""What the cases of one bench share: the device, packages that passed their self-test, and the time left."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.kernels.bench.record import GpuBench, surroundings_of
from archc.kernels.bench.timing import Budget, Result, Side, clock_for

if TYPE_CHECKING:
    import torch

REFUSED = "not timed: the self-test failed: "
MODEL = "bench_model"  # the package of the spec that is measured


class Session:
    """One run. folder: where packages are built, which can be imported from there."""

    def __init__(
        self,
        spec: Path,
        target: str,
        device: torch.device,
        folder: Path,
        *,
        rounds: int,
        seconds: float,
        tell: Callable[[str], None],
    ) -> None:
        import torch

        self.spec, self.target, self.device, self.folder = spec, target, device, folder
        self.rounds, self.tell = rounds, tell
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.clock = clock_for(device)
        self.budget = Budget(seconds)
        self.found = GpuBench(str(spec), target, surroundings_of(device), budget=seconds)
        self.built: dict[str, str] = {}  # what keeps a package from being timed, empty where nothing does
        self._model: Any = None

    def resume(self, earlier: GpuBench) -> None:
        """Go on where another run ended: keep its results, and do not build again what failed its self-test."""
        self.found.results = [result for result in earlier.results if not result.left_out]
        self.found.selftests = earlier.selftests
        for name, tests in earlier.selftests.items():
            if tests["failed"]:
                self.built[name] = REFUSED + tests["failed"][0]

    def package(self, name: str, source: Any, result: Result) -> bool:
        """Build a package and run its self-test, once; whether it may be timed."""
        from archc.pipeline import build

        if name not in self.built:
            try:
                # Not compiled ahead of time: here the self-test says what this device makes of the kernels.
                build(source, self.folder / name, target=self.target, verify=False)
                importlib.invalidate_caches()
                self.tell(f"self-test of {name}")
                failed = self.selftest(name)
                self.built[name] = REFUSED + failed if failed else ""
            except Exception as error:  # the same for every case that wants it
                text = str(error).splitlines()
                self.built[name] = f"not timed: {type(error).__name__}: {text[0] if text else ''}"
        if self.built[name]:
            result.why_not["case"] = self.built[name]
        return not self.built[name]

    def selftest(self, name: str) -> str:
        """The first check that fails, or nothing. A package without recurrences has none."""
        if not (self.folder / name / "selftest.py").exists():
            return ""
        selftest = importlib.import_module(f"{name}.selftest")
        self.found.surroundings = selftest.surroundings(self.device) | self.found.surroundings
        checks = list(selftest.run(self.device, dtypes=(self.dtype,), quick=True))
        failed = [str(check) for check in checks if not check.passed]
        forms = sorted({f"{c.kernel} {c.what}: {c.implementation}" for c in checks if c.implementation})
        self.found.selftests[name] = {"checks": len(checks), "failed": failed, "implementations": forms}
        return failed[0] if failed else ""

    def model(self, result: Result) -> Any:
        """The model that is measured, or None where its self-test keeps it from being timed."""
        if not self.package(MODEL, self.spec, result):
            return None
        if self._model is None:
            self._model = importlib.import_module(MODEL).Model(device=self.device, dtype=self.dtype)
        return self._model

    def peer(self, result: Result, name: str, make: Callable[[], Callable[[int], object]]) -> list[Side]:
        """The side of a peer, or a note why it is not there."""
        try:
            return [Side(name, make())]
        except Exception as error:  # missing, or another version of it
            result.why_not[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            return []

    def shares(self, result: Result, tokens: int, least: float = 0.0, flops: float = 0.0) -> None:
        """Tokens a second; what `least` bytes and `flops` are of what the device can do in our time."""
        for name, figure in result.sides.items():
            result.tokens_per_second[name] = tokens / figure.seconds
        if "ours" in result.sides:
            taken = result.sides["ours"].seconds
            if least:
                result.bandwidth_share = least / taken / self.found.measured["copy_bandwidth"]
            if flops:
                result.matrix_share = flops / taken / self.found.measured["matrix_rate"]


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Packages of a folder can be imported meanwhile."""
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
                del sys.modules[name]
