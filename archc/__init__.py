"""archc: a compiler from YAML specs of sequence models to stand-alone PyTorch packages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["MachineError", "SpecError", "__version__", "build", "check", "load", "sweep"]

if TYPE_CHECKING:
    from archc.output.load import load
    from archc.pipeline import build, check, sweep
    from archc.spec.diagnostics import MachineError, SpecError

# Where each public name lives. They are fetched on first use, so that `import archc` costs nothing.
_HOME = {
    "build": "archc.pipeline",
    "check": "archc.pipeline",
    "load": "archc.output.load",
    "sweep": "archc.pipeline",
    "MachineError": "archc.spec.diagnostics",
    "SpecError": "archc.spec.diagnostics",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'archc' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
