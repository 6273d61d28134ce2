"""The committed table of classes and targets: every class is there, and what it says of two targets still comes out."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from archc.kernels import compile
from archc.kernels.report import recurrence_kinds
from archc.kernels.targets import load_target, target_names
from archc.pipeline import graph_of
from archc.tiles.kind import RecurrenceKind, form_of
from tests.oracles.row import rows, spec

ROOT = Path(__file__).parents[2]
COMMITTED: dict[str, Any] = json.loads((ROOT / "docs" / "kernels.json").read_text(encoding="utf-8"))
FITTING = [
    (target, name)
    for target in ("h100", "a100")
    for name, entries in COMMITTED["targets"][target].items()
    if entries["128"]["form"] == "walk"
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/kernel_table.py as a module."""
    found = importlib.util.spec_from_file_location("kernel_table", ROOT / "scripts" / "kernel_table.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["kernel_table"] = module
    found.loader.exec_module(module)
    return module


def test_every_class_has_its_entry(script: ModuleType) -> None:
    assert {"h100", "a100"} <= set(COMMITTED["targets"]) <= set(target_names())
    for classes in COMMITTED["targets"].values():
        assert list(classes) == list(script.CLASSES)
        assert all("128" in entries for entries in classes.values())


def test_the_page_is_that_of_the_figures(script: ModuleType) -> None:
    assert (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8") == script.page(COMMITTED)


def test_each_class_is_what_its_name_says(script: ModuleType) -> None:
    for name in script.CLASSES:
        assert list(recurrence_kinds(script.model(name, 64, 32))) == [name]


def kernel_class(kind: RecurrenceKind) -> RecurrenceKind:
    """The class as far as kernels differ; a bound of the decay changes none."""
    return replace(kind.core(), decay_bounded=False)


@pytest.mark.slow
def test_the_classes_are_those_of_the_library(script: ModuleType) -> None:
    cores = set()
    for name in script.CLASSES:
        cores |= {kernel_class(kind) for kind in recurrence_kinds(script.model(name, 64, 64)).values()}
    for mixer, each in rows().items():
        for row in each.values():
            for kind in recurrence_kinds(graph_of(spec(mixer, row))).values():
                if form_of(kind).form == "chunk":
                    assert kernel_class(kind) in cores, (mixer, kind)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "each"), FITTING)
def test_what_fits_still_fits(
    script: ModuleType, name: str, each: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    if triton.__version__ != COMMITTED["triton"]:
        pytest.skip(f"the table is that of Triton {COMMITTED['triton']}")
    monkeypatch.setattr(compile, "SECONDS", 900.0)  # a busy machine is no failure
    (entry,) = script.entries(load_target(name), [(each, 128)])
    assert entry["form"] == "walk", entry
    assert entry["gradients"] == COMMITTED["targets"][name][each]["128"]["gradients"]
