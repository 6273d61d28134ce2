"""`archc.load`: what is built is imported, again when it changes, and never mixed up."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import archc
from archc.output import write_package
from archc.spec.diagnostics import MachineError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose package says what the file says; stands in for the compiler."""
    pipeline = ModuleType("archc.pipeline")

    def build(source: Path | dict[str, object], out: Path, *, force: bool = False) -> None:
        text = source.read_text() if isinstance(source, Path) else str(source["text"])
        write_package({"__init__.py": "from .model import SAID\n", "model.py": text}, out, force=force)

    pipeline.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "archc.pipeline", pipeline)
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "thing.yaml"
    path.write_text("SAID = 'first'\n")
    return path


def test_a_package_is_built_and_imported(source: Path, tmp_path: Path) -> None:
    module = archc.load(source)
    assert module.SAID == "first"
    assert Path(module.__file__ or "").is_relative_to(tmp_path / "cache")
    assert archc.load(str(source)).SAID == "first"


def test_a_changed_source_gives_a_new_module_and_the_old_one_stays(source: Path) -> None:
    first = archc.load(source)
    source.write_text("SAID = 'second'\n")
    assert archc.load(source).SAID == "second" and first.SAID == "first"


def test_operations_outlive_an_earlier_load_of_the_same_source() -> None:
    """Torch takes an operation away when its module is collected, by name; so no two loads share names."""
    source = Path(__file__).parents[2] / "specs" / "models" / "gla_small.yaml"
    earlier = archc.load(source)
    assert earlier.__name__ != (later := archc.load(source)).__name__
    del earlier
    gc.collect()
    model = later.Model()
    assert model(torch.arange(20).unsqueeze(0)).isfinite().all()


def test_two_sources_of_one_name_do_not_meet(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "thing.yaml"
    other.parent.mkdir()
    other.write_text("SAID = 'other'\n")
    assert (archc.load(source).SAID, archc.load(other).SAID, archc.load(source).SAID) == (
        "first",
        "other",
        "first",
    )


def test_a_mapping_is_a_source_too(source: Path) -> None:
    assert archc.load({"name": "class", "text": "SAID = 'mapped'\n"}).SAID == "mapped"


def test_edits_in_the_cache_are_overwritten(source: Path) -> None:
    module = archc.load(source)
    (Path(module.__file__ or "").parent / "model.py").write_text("SAID = 'edited'\n")
    assert archc.load(source).SAID == "first"


def test_without_torch_the_machine_is_at_fault(source: Path) -> None:
    source.write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    before = set(sys.modules)
    with pytest.raises(MachineError, match="archc-compiler\\[torch\\]"):
        archc.load(source)
    assert not [name for name in set(sys.modules) - before if name.startswith("thing_")]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        archc.compile  # noqa: B018
    assert {"build", "check", "load", "SpecError", "MachineError"} <= set(dir(archc))
