"""Finds the operations: each folder beside this file, and those that a user's project adds."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

import archc.operations
from archc.operations.base import Operation


@cache
def operations() -> dict[str, Operation]:
    """Every known operation by name. A user's package adds some through the entry point `archc.operations`."""
    found: dict[str, Operation] = {}
    for info in pkgutil.iter_modules(archc.operations.__path__):
        if info.ispkg:
            module = importlib.import_module(f"archc.operations.{info.name}")
            for operation in getattr(module, "OPERATIONS", ()):
                found[operation.name] = operation
    for entry in entry_points(group="archc.operations"):
        for operation in entry.load().OPERATIONS:
            found.setdefault(operation.name, operation)
    return found
