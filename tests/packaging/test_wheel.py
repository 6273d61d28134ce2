"""The built wheel, in an empty environment and without the repository, builds a packaged spec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without anything of this process's Python on its path; its standard output."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    repository = Path(__file__).resolve().parents[2]
    run(
        sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, repository, cwd=folder
    )
    (built,) = folder.glob("archc_compiler-*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and what it depends on, nothing else; its `bin` folder."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder / "env", with_pip=True)
    constraints = Path(__file__).resolve().parents[2] / "constraints.txt"
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-qq", "--constraint", constraints, wheel, cwd=folder)
    return python.parent


def test_the_wheel_holds_what_archc_needs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"archc"}
    for wanted in (
        "_data/specs/models/smollm2_135m.yaml",
        "_data/specs/starter/starter.yaml",
        "_data/specs/sweeps/hybrid_linear_attention.yaml",
        "py.typed",
    ):
        assert f"archc/{wanted}" in names
    assert any(name.startswith("archc/_data/templates/") for name in names)
    assert any(name.startswith("archc/operations/") and name.endswith("/runtime.py") for name in names)
    assert any(name.startswith("archc/errors/E") for name in names)
    assert not [name for name in names if name.endswith(".pyc")]


def test_no_torch_is_needed_to_check_and_build(elsewhere: Path, tmp_path: Path) -> None:
    for module in ("torch", "triton", "sympy", "numpy"):
        missing = subprocess.run([elsewhere / "python", "-c", f"import {module}"], capture_output=True)
        assert missing.returncode != 0, f"{module} came with the wheel"
    assert "no mistakes" in run(elsewhere / "archc", "check", "smollm2_135m", cwd=tmp_path)


def test_a_packaged_spec_is_built_and_runs_without_archc(elsewhere: Path, tmp_path: Path) -> None:
    run(elsewhere / "archc", "build", "gated_deltanet_small", cwd=tmp_path)
    package = tmp_path / "generated" / "gated_deltanet_small"
    assert json.loads((package / "manifest.json").read_text())["files"]
    program = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); "
        "from generated.gated_deltanet_small import Model; "
        "out = Model()(torch.zeros(1, 5, dtype=torch.long)); "
        "assert torch.isfinite(out).all() and out.shape[:2] == (1, 5); "
        "assert not [m for m in sys.modules if m.split('.')[0] == 'archc'], 'the package needs archc'"
    )
    run(sys.executable, "-c", program, tmp_path, cwd=tmp_path)


def test_the_same_bytes_as_in_the_repository(elsewhere: Path, tmp_path: Path) -> None:
    run(elsewhere / "archc", "build", "gdn_hybrid_340m", "--out", "there", cwd=tmp_path)
    run(sys.executable, "-m", "archc", "build", "gdn_hybrid_340m", "--out", "here", cwd=tmp_path)
    there = (tmp_path / "there" / "manifest.json").read_bytes()
    assert there == (tmp_path / "here" / "manifest.json").read_bytes()


def test_a_new_spec_is_built(elsewhere: Path, tmp_path: Path) -> None:
    run(elsewhere / "archc", "new", "mine", cwd=tmp_path)
    run(elsewhere / "archc", "build", "mine.yaml", cwd=tmp_path)
    assert (tmp_path / "generated" / "mine" / "__init__.py").exists()
    assert "E901" in run(elsewhere / "archc", "explain", "E901", cwd=tmp_path)
    assert run(elsewhere / "archc", "library", cwd=tmp_path).count("\n") > 30
