"""The run-time sources, put together as one package the way a build lays them out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.operations.assembly import assemble, load

PACKAGE = "assembled_package"


@pytest.fixture(scope="session")
def package_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tmp_path_factory.mktemp("runtime") / PACKAGE)


@pytest.fixture(scope="session")
def package(package_folder: Path) -> Iterator[Any]:
    """The modules as attributes: `package.place`, `package.conv1d`, ..."""
    modules = load(package_folder, PACKAGE)
    yield SimpleNamespace(**modules)


@pytest.fixture(autouse=True)
def _quiet_machine() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
