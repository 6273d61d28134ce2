"""Imports modules that a test has just written."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType


def imported(name: str, folder: Path | None = None) -> ModuleType:
    """The module of this name, from `folder` if it is given, never one that was written elsewhere or before.

    A worker may leave the tests of a file and come back to them: a fixture of the file then writes its modules again,
    in another folder, while Python still knows the package by its first one. Python also lists a folder again only
    once its time has changed, and the clock of a file system may stand still for longer than it takes to write two
    modules.
    """
    importlib.invalidate_caches()
    if folder is None:
        return importlib.import_module(name)
    package = name.partition(".")[0]
    known = sys.modules.get(package)
    if known is not None and known.__file__ is not None and not Path(known.__file__).is_relative_to(folder):
        forget(package)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def forget(package: str) -> None:
    """The next import of this package, or of a module of it, reads it again."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
