"""Build a spec into a cache folder and import what came out."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import keyword
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from archc.output.cache import cache_folder
from archc.spec.diagnostics import MachineError


def load(source: str | Path | Mapping[str, object]) -> ModuleType:
    """Build `source` (a path or the spec as a mapping) for the CPU, import the package and return its module.

    The package lies in a cache folder (`ARCHC_CACHE`, else `archc` below the user's cache folder), one for
    each source, and only files whose text changed are written. A module loaded earlier from the same source
    keeps working; a later `load` gives a module with classes of its own.

    Raises `SpecError` where the spec is at fault, `MachineError` where the machine is: no torch, no space.
    """
    from archc.pipeline import build

    if isinstance(source, str):
        source = Path(source)
    name, key = _identity(source)
    out = cache_folder() / key / name
    build(source, out, force=True)  # a cache is nobody's to edit
    return _import(out, f"{name}_{key}")


def _identity(source: Path | Mapping[str, object]) -> tuple[str, str]:
    """A package name and a short key for a source: the same for the same file, or for equal mappings."""
    if isinstance(source, Path):
        name, text = source.name.split(".")[0], str(source.resolve())
    else:
        name, text = str(source.get("name", "")), json.dumps(source, sort_keys=True, default=str)
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or len(name) > 100:
        name = "model"
    return name, hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def _import(folder: Path, name: str) -> ModuleType:
    # Never the name of a module loaded before: its operations are registered under that name until the module is
    # collected, and then torch would take away those of the new module with them.
    base, times = name, itertools.count(2)
    while name in sys.modules:
        name = f"{base}_{next(times)}"
    importlib.invalidate_caches()
    found = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if found is None or found.loader is None:
        raise MachineError(f"cannot import {folder}")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except ModuleNotFoundError as error:
        del sys.modules[name]
        if error.name != "torch":
            raise
        raise MachineError("a generated package needs torch: pip install 'archc-compiler[torch]'") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module
