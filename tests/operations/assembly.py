"""Put the run-time sources together as one package, and import it under any name."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

from tests.support.imports import imported

ROOT = Path(__file__).parents[2]


def assemble(folder: Path) -> Path:
    """Copy `templates/runtime/*.py` and each operation's `runtime.py`, as `<operation>.py`, to one folder.

    Self-tests read a file that is written for one model, and stay out.
    """
    folder.mkdir()
    (folder / "__init__.py").write_text('"""The run-time sources."""\n')
    for source in sorted((ROOT / "templates" / "runtime").glob("*.py")):
        if source.stem.startswith("selftest"):
            continue
        shutil.copy(source, folder / source.name)
    for source in sorted((ROOT / "archc" / "operations").glob("*/runtime.py")):
        shutil.copy(source, folder / f"{source.parent.name}.py")
    return folder


def load(folder: Path, name: str) -> dict[str, ModuleType]:
    """Import the package in `folder` under any name, as a copy somewhere else would be."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return {path.stem: imported(f"{name}.{path.stem}") for path in sorted(folder.glob("[a-z]*.py"))}
