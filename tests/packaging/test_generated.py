"""What is committed under generated/ is what the compiler writes today."""

from __future__ import annotations

import ast
import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from archc.pipeline import sources_of
from archc.spec.diagnostics import SpecError
from tests.laws.subjects import one_mixer

ROOT = Path(__file__).resolve().parents[2]
GPU_PACKAGES = sorted((ROOT / "generated").glob("*_h100"))
LINES = 60  # of a kernel without its arguments; most have fewer than 50


def test_committed_packages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "rebuild_generated.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"run `make build`:\n{done.stdout}{done.stderr}"


def assert_clean(folder: Path) -> None:
    """Every rule that archc's own sources keep, and the formatter's last word; kernels too."""
    ruff = [sys.executable, "-m", "ruff"]
    everything = [
        "--config",
        str(ROOT / "pyproject.toml"),
        "--config",
        "extend-exclude = []",
        "--no-cache",
        str(folder),
    ]
    # PIE808: loops of kernels may say where they begin.
    for command in (["check", "--extend-ignore=PIE808", *everything], ["format", "--check", *everything]):
        done = subprocess.run([*ruff, *command], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No Python files" not in done.stdout + done.stderr


def test_committed_packages_are_clean_under_ruff() -> None:
    assert_clean(ROOT / "generated")


@pytest.mark.slow
def test_every_mixer_of_the_library_has_clean_kernels(tmp_path: Path) -> None:
    """In a package for a GPU: what rules print for all classes, some class does not need."""
    for mixer in sorted(path.stem for path in (ROOT / "specs" / "mixers").glob("*.yaml")):
        for heads in ({"n_heads": 8}, {}):  # not every mixer has heads
            spec = one_mixer(mixer, {"use": mixer, **heads})
            spec["model"]["d_model"] = 1024
            with contextlib.suppress(SpecError):
                sources = sources_of(spec, target="h100")
                break
        else:
            pytest.fail(f"{mixer} cannot be built")
        (tmp_path / mixer).mkdir()
        for name, text in sources.items():
            (tmp_path / mixer / name).write_text(text)
    assert_clean(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_committed_packages_are_clean_under_mypy(tmp_path: Path) -> None:
    """All at once: torch is analysed a single time. Kernels are not typed, their launchers are."""
    for folder in GPU_PACKAGES:
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    names = [folder.name for folder in GPU_PACKAGES]
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", GPU_PACKAGES, ids=lambda folder: folder.name)
def test_kernels_read_as_if_written_by_hand(folder: Path) -> None:
    """Short kernels; Triton imported in their files alone, and those only where a GPU takes them."""
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        kernels = path.name.endswith("_kernels.py")
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in top for alias in node.names}
        names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
        assert kernels or not any(name == "triton" or name.endswith("_kernels") for name in names), path
        for node in ast.walk(tree) if kernels else ():
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1
                assert lines <= LINES, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slot_hybrid", "gla_small_h100", "mamba2_small_h100"])
def test_what_is_committed_can_be_imported_and_runs(name: str) -> None:
    script = (
        "import torch\n"
        f"from generated.{name} import Config, Model\n"
        "model = Model(Config(n_layers=2))\n"
        "tokens = torch.randint(0, 256, (2, 9))\n"
        "assert model(tokens).shape == (2, 9, 256)\n"
        "print(sum(p.numel() for p in model.parameters()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr
