"""Where archc keeps what it can make again: packages of `load`, and what was found of compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$ARCHC_CACHE`, else `$XDG_CACHE_HOME/archc`, else `~/.cache/archc`."""
    if chosen := os.environ.get("ARCHC_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archc"
