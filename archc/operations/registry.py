"""Finds the operations: each folder beside this file, installed ones, and those of a user's project."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import tomllib
import traceback
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import archc.operations
from archc.operations.base import Operation
from archc.spec.diagnostics import Reporter, Span

_folders: dict[str, Path] = {}  # of operations from installed packages, by the folder's name
_added: dict[str, tuple[Operation, Path]] = {}  # a project's own operations, with their folders


@cache
def _installed() -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    for info in pkgutil.iter_modules(archc.operations.__path__):
        if info.ispkg:
            module = importlib.import_module(f"archc.operations.{info.name}")
            for operation in getattr(module, "OPERATIONS", ()):
                found[operation.name] = operation
    for entry in entry_points(group="archc.operations"):
        module = entry.load()
        for operation in module.OPERATIONS:
            if found.setdefault(operation.name, operation) is operation:
                _folders[Path(module.__file__).parent.name] = Path(module.__file__).parent
    return found


def operations() -> dict[str, Operation]:
    """Every known operation by name.

    archc's own come first, then those of installed packages (entry points `archc.operations`, each a module with
    `OPERATIONS`), then those of the project's `archc.toml`.
    """
    return (
        {**{name: operation for name, (operation, _) in _added.items()}, **_installed()}
        if _added
        else _installed()
    )


def folder_of(operation: Operation) -> Path:
    """Where an operation's sources lie."""
    return Path(str(sys.modules[type(operation).__module__].__file__)).parent


def source_path(file: str) -> Path | None:
    """Where the source of a file of packages lies that operations bring along, or None for others."""
    own = next((folder for _, folder in _added.values() if folder.name == file), None) or _folders.get(file)
    if own is not None:
        return own / "runtime.py"
    for operation in operations().values():
        if file in operation.kernel_files:
            return folder_of(operation) / operation.kernel_files[file]
    runtime = Path(archc.operations.__path__[0]) / file / "runtime.py"
    return runtime if runtime.is_file() else None


def with_kernels() -> dict[tuple[str, str], tuple[str, str]]:
    """For packages for a GPU: (file of a package, name) -> the same with kernels."""
    return {
        name: other for operation in operations().values() for name, other in operation.with_kernels.items()
    }


def is_added(name: str) -> bool:
    """Whether an operation is the project's own."""
    return name in _added


def add_project_operations(start: Path, report: Reporter) -> None:
    """Load the operations that the nearest `archc.toml` at or above `start` names: `[operations] folders = [...]`.

    Each of these folders holds one folder an operation, with `__init__.py` and, where needed, `runtime.py`. Code that
    cannot be loaded is an error (E390) with the end of its traceback.
    """
    _added.clear()
    path = next((f / "archc.toml" for f in (start, *start.parents) if (f / "archc.toml").is_file()), None)
    if path is None:
        return
    place = Span(str(path), 1, 1, 1, 1)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("operations", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return  # reported where the library's folders are read
    names = table.get("folders", []) if isinstance(table, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        report.error(
            "E390",
            "the table `[operations]` of archc.toml holds something else than folders",
            place,
            help='write `[operations]` and below it `folders = ["operations"]`',
        )
        return
    for name in names:
        folder = path.parent / name
        if not folder.is_dir():
            report.error("E390", f"archc.toml names the folder `{name}`, which does not exist", place)
            continue
        for package in sorted(folder.iterdir()):
            if (package / "__init__.py").is_file():
                _add(package, report, place)


def _add(folder: Path, report: Reporter, place: Span) -> None:
    name = f"archc_project_operation_{folder.name}"
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        found = list(module.OPERATIONS)
    except Exception as error:  # a project's own code may fail in any way
        report.error(
            "E390", f"the operation in {folder} cannot be loaded: {error}", place, note=last_lines(error)
        )
        return
    for operation in found:
        if operation.name in _installed():
            report.error(
                "E390",
                f"there is an operation `{operation.name}` already",
                place,
                help="give yours another name",
            )
            continue
        taken = [file for file in operation.kernel_files if source_path(file) is not None]
        missing = [file for file in operation.kernel_files.values() if not (folder / file).is_file()]
        if taken or missing:
            report.error(
                "E390",
                f"the operation in {folder} names a file `{(taken or missing)[0]}` that "
                + ("another operation has" if taken else "does not exist"),
                place,
                help="`kernel_files` gives files of packages their sources in the operation's folder",
            )
            continue
        _added[operation.name] = (operation, folder)


def last_lines(error: BaseException) -> str:
    """Where in a project's own code an exception arose, in a line."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f"{last.filename}:{last.lineno}, " if last else ""
    return f"{where}{type(error).__name__}: {error}"
