"""`archc kernels`: table, JSON, exit codes, errors at the line of the spec; the kernels stand in for a model's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from archc.cli.app import app
from archc.kernels import compile as compiling
from archc.kernels.kernel import Kernel
from archc.spec.diagnostics import Span
from tests.kernels import samples

pytest.importorskip("triton")

SPEC = """\
archc: 1
name: small
model: {vocab_size: 64, d_model: 64, n_layers: 1, context: 64}
blocks:
  only:
    use: pre_norm
    mixer: {use: simple_gla, n_heads: 2}
    mlp: {use: swiglu, d_ff: 128}
layers: only
"""


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """The kernels of the model in `small.yaml` of this folder; tests fill the list."""
    found: list[Kernel] = []
    plan = ModuleType("archc.kernels.plan")
    plan.kernels_of = lambda graph, target: tuple(found)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "archc.kernels.plan", plan)
    (tmp_path / "small.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["kernels", "small.yaml", *arguments])


def at(line: int, kernel: Kernel, **changes: Any) -> Kernel:
    return replace(kernel, span=Span("small.yaml", line, 18, line, 28), **changes)


def test_a_model_whose_kernels_fit(planned: list[Kernel]) -> None:
    planned += [
        at(
            7,
            samples.FITS,
            file="head_decay_kernels.py",
            role="walk",
            constants={"M": 64, "N": 64, "K": 64},
        )
    ]
    done = run("--target", "h100")
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("head_decay.product")]
    assert line.split()[1:6] == ["64", "0", "0", "32,768", "4"] and line.split()[-1] == "yes"
    assert "NVIDIA H100 SXM, Triton " in done.stdout and done.stderr == ""


def test_one_that_does_not_fit_is_named_with_its_line(planned: list[Kernel]) -> None:
    planned += [at(7, samples.NO_MATRIX), at(7, samples.PLAIN)]
    done = run()
    assert done.exit_code == 1
    assert "E501" in done.stderr and "small.yaml:7:18" in done.stderr and "simple_gla" in done.stderr
    assert "it has no wgmma instructions" in done.stderr and "--allow-torch" in done.stderr


def test_json(planned: list[Kernel]) -> None:
    planned += [at(7, samples.PLAIN), at(7, samples.NO_MATRIX)]
    done = run("--json")
    assert done.exit_code == 1 and done.stderr == ""
    found = json.loads(done.stdout)
    assert found["target"] == "h100" and found["fits"] is False and found["triton"]
    fits, misfit = found["kernels"]
    assert fits["verdict"] == "fits" and fits["fit"]["found"]["registers"] > 0 and fits["bounds"] is None
    assert misfit["verdict"] == "it has no wgmma instructions"
    assert misfit["fit"]["span"]["line"] == 7


def test_bounds_of_a_recurrence(planned: list[Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    constants = {"C": 128, "K": 128, "V": 128, "H": 2}
    of_class = {"file": "head_decay_kernels.py", "constants": constants, "matrix": True}
    planned += [at(7, samples.PLAIN, role=role, **of_class) for role in ("walk", "prepare")]
    done = json.loads(run("--json").stdout)
    walk, prepare = done["kernels"]
    assert walk["bounds"]["bytes"] > 0 and walk["binding"] == "chain"  # two heads leave most of the GPU idle
    assert prepare["bounds"]["chain"] == 0.0
    assert "*" in run().stdout and run("--target", "mi300x").stdout.count("?") == 2


def test_a_model_without_kernels(planned: list[Kernel]) -> None:
    done = run("--target", "a100")
    assert done.exit_code == 0 and "no kernels for NVIDIA A100 SXM" in done.stdout
    assert json.loads(run("--json").stdout)["kernels"] == []


def test_no_such_target(planned: list[Kernel]) -> None:
    done = run("--target", "h1000")
    assert done.exit_code == 2 and "rtx4090" in done.output


def test_without_triton(planned: list[Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    planned += [samples.PLAIN]
    monkeypatch.setattr(compiling, "triton_version", lambda search: None)
    done = run()
    assert done.exit_code == 3 and "pip install 'archc-compiler[kernels]'" in done.stderr


def test_a_build_may_leave_it_to_the_gpu(
    planned: list[Kernel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is refused, unless nobody asked: the files are those of a machine without Triton."""
    planned += [at(7, samples.NO_MATRIX)]
    monkeypatch.setattr("archc.kernels.check.kernels_of", lambda graph, target: tuple(planned))
    command = ["build", "small.yaml", "--target", "h100", "--out", "package"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "E501" in refused.stderr and not (tmp_path / "package").exists()
    done = CliRunner().invoke(app, [*command, "--no-verify"])
    assert done.exit_code == 0 and "they were not compiled, so nobody has seen" in done.stderr, done.output
    assert (tmp_path / "package" / "selftest.py").exists()
