"""Emitted recurrence modules, loaded as they stand in a package."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from tests.support.imports import imported
from tests.tiles.cases import label

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory, repository_root: Path) -> Path:
    """An empty package with the run-time files that a recurrence module imports."""
    folder = tmp_path_factory.mktemp("emitted") / "emitted_tiles"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name in ("place", "tiling"):
        shutil.copy(repository_root / "templates" / "runtime" / f"{name}.py", folder)
    return folder


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def load(package: Path) -> Callable[[RecurrenceKind], ModuleType]:
    """The module of a class, emitted and imported once."""

    def load_kind(kind: RecurrenceKind) -> ModuleType:
        name = label(kind)
        path = package / f"{name}.py"
        if not path.exists():
            path.write_text(emit(kind, name))
        return imported(f"emitted_tiles.{name}", package.parent)

    return load_kind
