"""Writes the resolved spec of every point into one folder, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from archc.output.write import WriteReport, write_package
from archc.sweeps.run import Study


def write_specs(study: Study, out: Path, *, force: bool = False, keep: bool = False) -> WriteReport:
    """Write `NAME.yaml` for each point into `out`, as a package is written: swapped in whole, edits protected.

    Raises SpecError for a folder that holds something else or hand edits, and for points that are no models.
    """
    from archc.spec.diagnostics import SpecError

    if study.errors:
        raise SpecError(study.errors)
    return write_package(
        {f"{point.name}.yaml": point.text for point in study.points}, out, force=force, keep=keep
    )
