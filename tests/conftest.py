"""Settings for every test: one thread a worker, hypothesis without clocks, a cache of one's own."""

from __future__ import annotations

import os

# Before anything imports torch: the workers of xdist share the machine.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("archc", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "archc"))

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`archc.load` builds into a folder of this test run, never into the user's cache."""
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path_factory.getbasetemp() / "archc_cache"))
