"""Hand a generated package over to the user: archc will not write to it again."""

from __future__ import annotations

from pathlib import Path

from archc.output.edits import refuse_folder
from archc.output.manifest import MANIFEST_NAME
from archc.output.swap import locked, recover
from archc.output.write import locate, read_package
from archc.spec.diagnostics import MachineError


def eject(out: Path) -> tuple[str, ...]:
    """Remove the manifest from `out` and return the sorted paths that are now the user's.

    Raises `SpecError` where `out` is no archc output, `MachineError` when the machine cannot write.
    """
    out = locate(out)
    if not out.parent.is_dir():
        raise refuse_folder(out, "it does not exist")
    try:
        with locked(out):
            recover(out)
            files = read_package(out)
            if files is None:
                raise refuse_folder(out, "it is empty" if out.is_dir() else "it does not exist")
            (out / MANIFEST_NAME).unlink()
            return tuple(sorted(files))
    except OSError as error:
        raise MachineError(f"cannot write {out}: {error.strerror or error}") from error
