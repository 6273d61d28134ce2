"""The script for the day when a GPU is at hand, tried out on a CPU; the table and the picture that it makes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

SPEC = """\
archc: 1
name: tiny
model: {vocab_size: 32, d_model: 32, n_layers: 2, context: 64, tie_embeddings: true, norm: rmsnorm}
blocks:
  main:
    mixer: {use: gated_deltanet, n_heads: 2, head_dim: 16, expand_v: 1}
    mlp: {use: swiglu, d_ff: 32}
layers: [1 main]
"""


def script(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def check(kernel: str, dtype: str, passed: bool, implementation: str = "kernel") -> dict[str, Any]:
    return {"kernel": kernel, "sizes": "H2 K64 V64", "dtype": dtype, "passed": passed} | {
        "implementation": implementation
    }


def test_a_kernel_is_seen_right_only_if_all_its_checks_passed() -> None:
    report: dict[str, Any] = {
        "finished": True, "device": "G", "driver": "1.2", "triton": "3.7.1", "torch": "2.11",
        "checks": [
            check("right", "bfloat16", True), check("right", "bfloat16", True), check("right", "float16", False),
            check("form", "bfloat16", True, "torch form"),
            check("raised", "bfloat16", True), check("raised", "", False, ""),
        ],
    }  # fmt: skip
    found = script("seen_kernels").rows([report])
    right = ["G", "1.2", "3.7.1", "2.11", "right H2 K64 V64", "bfloat16", 2]
    assert found == [right]
    # Ended early: the last kernel may have had more checks to come.
    report |= {"finished": False, "checks": [*report["checks"], check("last", "bfloat16", True)]}
    assert script("seen_kernels").rows([report]) == [right]


def test_the_committed_table_has_the_same_columns() -> None:
    table = json.loads((ROOT / "docs" / "benchmarks" / "seen.json").read_text())
    assert table["columns"] == script("seen_kernels").COLUMNS
    assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_the_picture_has_a_bar_for_each_ratio() -> None:
    ratio = {"median": 1.5, "low": 1.2, "high": 1.9}
    result = {"case": "a < b", "what": "forward", "ratios": {"fla": ratio, "sdpa": ratio}}
    text = script("plot_benchmarks").svg([{"surroundings": {"device": "G & co"}, "results": [result]}])
    picture = ElementTree.fromstring(text)
    assert len(picture.findall("{*}rect")) == 3 and "1.50" in text
    assert ElementTree.fromstring(script("plot_benchmarks").svg([])) is not None


@pytest.mark.library
@pytest.mark.timeout(900)
def test_a_session_tried_out(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPEC)
    where = {
        "PYTHON": sys.executable,
        "GPU_SESSION_MODELS": str(tmp_path / "tiny.yaml"),
        "GPU_SESSION_CHECKED": str(tmp_path / "tiny.yaml"),
        "GPU_SESSION_SELFTEST": "--device cpu --quick",
        "GPU_SESSION_BENCH": "--device cpu --tiny --rounds 1",
    }
    command = ["sh", str(ROOT / "scripts" / "gpu_session.sh"), str(tmp_path / "out"), "400"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | where)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    assert json.loads((out / "selftest_tiny.json").read_text())["passed"]
    assert json.loads((out / "bench_tiny.json").read_text())["results"]
    assert json.loads((out / "seen.json").read_text())["rows"] == [], "torch forms are no kernels"
    ElementTree.parse(out / "bench.svg")
    with tarfile.open(out / "results.tar.gz") as packed:
        names = {Path(name).name for name in packed.getnames()}
    assert {"selftest_tiny.json", "bench_tiny.json", "bench.svg", "seen.json"} <= names
    # Once more: what is there is not done again.
    before = {name: (out / name).read_bytes() for name in ("selftest_tiny.json", "selftest_tiny.log")}
    results = json.loads((out / "bench_tiny.json").read_text())["results"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((out / name).read_bytes() == content for name, content in before.items())
    assert json.loads((out / "bench_tiny.json").read_text())["results"][: len(results)] == results
