"""The package itself: the same bytes everywhere, clean under mypy and ruff, importable under any name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import archc
from tests.laws.measure import sequences_of, subject
from tests.laws.subjects import SUBJECTS
from tests.support.packages import folder_of, import_folder
from tests.support.slow import mostly_slow

REPOSITORY = Path(archc.__file__).resolve().parents[1]

DIGEST = """
import hashlib, json, sys
from archc.pipeline import sources_of
for spec in json.load(sys.stdin):
    text = json.dumps(sources_of(spec), sort_keys=True)
    print(hashlib.sha256(text.encode()).hexdigest())
"""


def digests(specs: list[Any], **environment: str) -> list[str]:
    """One hash a package, made in a process with this environment."""
    found = subprocess.run(
        [sys.executable, "-c", DIGEST],
        input=json.dumps(specs),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        check=True,
    )
    return found.stdout.split()


@pytest.mark.slow
def test_same_bytes() -> None:
    specs = [dict(spec) for spec in SUBJECTS.values()]
    first = digests(specs, PYTHONHASHSEED="0", LC_ALL="C", LANG="C")
    assert len(set(first)) == len(specs)
    assert digests(specs, PYTHONHASHSEED="1", LC_ALL="C.UTF-8", LANG="C.UTF-8") == first
    assert digests(specs, PYTHONHASHSEED="4294967295", LC_ALL="tr_TR.UTF-8", LANG="tr_TR.UTF-8") == first


def test_same_bytes_as_another_process() -> None:
    """The hybrid, quickly; all of them in the slow suite."""
    from archc.pipeline import sources_of

    spec = dict(SUBJECTS["windowed_hybrid"])
    text = json.dumps(sources_of(spec), sort_keys=True)
    assert digests([spec], PYTHONHASHSEED="7") == [hashlib.sha256(text.encode()).hexdigest()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_clean_under_mypy_and_ruff(tmp_path: Path) -> None:
    """All packages at once: torch is analysed a single time."""
    for name, spec in SUBJECTS.items():
        shutil.copytree(folder_of(spec), tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    lint = ["check", "--isolated", "--line-length=120", "--select=E,F,W,I,UP,B,C4,PIE", "--ignore=E741,E501"]
    checks = [
        [sys.executable, "-m", "ruff", *lint, "."],
        [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--line-length=110", "."],
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / ".mypy_cache"), *SUBJECTS],
    ]
    complaints = []
    for command in checks:
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        if found.returncode:
            complaints.append(found.stdout[-3000:] + found.stderr[-1000:])
    assert not complaints, "\n".join(complaints)


SCRIPT = """
import sys, torch
from {name} import Config, Model
assert "archc" not in sys.modules and "triton" not in Model.__module__
print(Model.__module__, Model()(torch.tensor([[1, 2, 3]])).shape)
"""


@pytest.mark.parametrize("name", mostly_slow(["generated.copied", "copied", "generated.deep.copied"], 3))
def test_import_from_anywhere(name: str, tmp_path: Path) -> None:
    """Relative imports inside: the folder may stand at any place, and needs neither archc nor a build."""
    place = tmp_path.joinpath(*name.split("."))
    shutil.copytree(folder_of(SUBJECTS["windowed_hybrid"]), place)
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(name=name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[0] == f"{name}.model" and "[1, 3, 64]" in found.stdout


def test_two_imports_of_one_package(tmp_path: Path) -> None:
    """The same folder under two names: classes and operations of their own, and neither breaks the other."""
    first, model = subject("windowed_hybrid")
    second = import_folder(folder_of(SUBJECTS["windowed_hybrid"]), "another_name")
    other = second.Model()
    assert type(other) is not type(model)
    other.load_state_dict(model.state_dict())
    (tokens,) = sequences_of(70)
    rows = tokens[None]
    assert torch.equal(model(rows), other(rows))
    with second.form("step"), torch.no_grad():
        assert not torch.equal(other(rows), model(rows)), "the form of one package is not that of the other"
    model.loss(rows).total.backward()
    other.loss(rows).total.backward()
    for (key, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None and torch.equal(one.grad, two.grad), key
        one.grad = None
