"""Imports modules that a test has just written."""

from __future__ import annotations

import importlib
from types import ModuleType


def imported(name: str) -> ModuleType:
    """The module of this name, also where its file is younger than what Python last saw of the folder.

    Python lists a folder again only once its time has changed, and the clock of a file system may stand still for
    longer than it takes to write two modules.
    """
    importlib.invalidate_caches()
    return importlib.import_module(name)
