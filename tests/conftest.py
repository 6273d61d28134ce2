"""Settings for every test: one thread a worker, hypothesis without clocks, a cache of one's own."""

from __future__ import annotations

import os

# Before anything imports torch: the workers of xdist share the machine.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import json  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("archc", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "archc"))

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is built by `archc.load` or compiled goes to a folder of this test run, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHC_CACHE", str(tmp_path_factory.getbasetemp() / "archc_cache"))
        yield


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages for a GPU are built as where Triton is missing: that their kernels compile is tested by others."""
    monkeypatch.setattr("archc.kernels.check.unfit", lambda *_: None)


# -- what the laws said of each mixer of the library --------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--results FILE`: write which laws each mixer of the library passed; `make library` does."""
    parser.addoption("--results", metavar="FILE", help="write which laws each mixer of the library passed")


class Results:
    """Collects, on the controller, the laws that tests report by `record_property("law", name)`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, dict[str, set[str]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A law holds for a mixer if every test that reported it passed."""
        if report.when != "call" and not (report.when == "setup" and report.failed):
            return
        properties: list[tuple[str, Any]] = report.user_properties
        mixer = next((value for key, value in properties if key == "mixer"), None)
        if mixer is None:
            return
        outcome = "passed" if report.passed else "failed"
        for law in (value for key, value in properties if key == "law"):
            self.found.setdefault(mixer, {}).setdefault(outcome, set()).add(law)

    def pytest_sessionfinish(self) -> None:
        """Write them in a stable order."""
        lines = []
        for mixer, outcomes in sorted(self.found.items()):
            failed = outcomes.get("failed", set())
            entry = {"passed": sorted(outcomes.get("passed", set()) - failed), "failed": sorted(failed)}
            lines.append(f"{json.dumps(mixer)}: {json.dumps({k: v for k, v in entry.items() if v})}")
        self.file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Only the controller of several workers writes."""
    file = config.getoption("--results", default=None)
    if file and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(Path(file)))


@pytest.fixture
def law(record_property: Any) -> Any:
    """`law(mixer, *names)`: this test is about these laws of a mixer; others than the library's are not recorded."""

    def record(mixer: str, *names: str) -> None:
        if not (REPOSITORY / "specs" / "mixers" / f"{mixer}.yaml").exists():
            return
        record_property("mixer", mixer)
        for name in names:
            record_property("law", name)

    return record
