"""Builds packages from specs for tests, once a session for each spec, and gives their weights random values."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import nn

from tests.support.imports import forget

SPECS = Path(__file__).resolve().parents[2] / "specs"

_FOLDER = tempfile.TemporaryDirectory(prefix="archc_test_packages_")
_BUILT: dict[str, ModuleType] = {}


def small_spec(name: str, **model: Any) -> dict[str, Any]:
    """The spec `specs/models/<name>.yaml` as a mapping, with some entries of its `model` replaced."""
    spec: dict[str, Any] = yaml.safe_load((SPECS / "models" / f"{name}.yaml").read_text())
    spec["model"] |= model
    return spec


def folder_of(source: Mapping[str, Any] | Path) -> Path:
    """The folder of the package of a spec, built on the first call."""
    return Path(str(package(source).__file__)).parent


def package(source: Mapping[str, Any] | Path) -> ModuleType:
    """The imported package of a spec: a mapping, or the path of a file. Built once for each content."""
    text = source.read_text() if isinstance(source, Path) else json.dumps(source, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    if key not in _BUILT:
        from archc.pipeline import build

        name = f"built_{key}"
        build(source, Path(_FOLDER.name) / name)
        _BUILT[key] = import_folder(Path(_FOLDER.name) / name, name)
    return _BUILT[key]


def import_folder(folder: Path, name: str) -> ModuleType:
    """Import the package in `folder` under `name`."""
    importlib.invalidate_caches()
    forget(name)
    found = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give each parameter random values: none may stay where it has no effect, such as 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if parameter.ndim == 2 and name.endswith(".weight") and "_conv." not in name:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * noise)
    return model


def random_model(source: Mapping[str, Any] | Path) -> nn.Module:
    """A model of a spec in float32 with random weights, the same in every call."""
    torch.manual_seed(0)
    return randomise(package(source).Model())


def in_float64(source: Mapping[str, Any] | Path, model: nn.Module) -> nn.Module:
    """The same weights in float64."""
    exact: nn.Module = package(source).Model(model.config).double()
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return exact
