"""Write a generated package as a whole: staged beside the old one, swapped in, edits by hand protected."""

from __future__ import annotations

import importlib
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archc.output.edits import covered, files_below, find_edits, refuse_edits, refuse_folder
from archc.output.manifest import (
    MANIFEST_NAME,
    NotAPackage,
    check_paths,
    digest,
    read_manifest,
    render_manifest,
)
from archc.output.swap import locked, recover, remove_tree, stage_path, swap_in
from archc.spec.diagnostics import MachineError


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What a write did, as sorted paths inside `out`.

    `written` are new or changed, `unchanged` had these bytes already, `removed` are no longer part of the
    package, `kept` are edited files left as they were, `carried` are files that archc never wrote.
    """

    out: Path
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    carried: tuple[str, ...]


def write_package(
    files: Mapping[str, str], out: Path, *, force: bool = False, keep: bool = False, wait: float = 60.0
) -> WriteReport:
    """Write `files` (relative POSIX path -> text) and their manifest into the folder `out`.

    Other readers see the old package or the new one, never a mixture, whenever the process may die. A file
    that was edited since archc wrote it stops the write, unless `force` (overwrite it) or `keep` (leave it as
    it is) says what to do. `wait` is how many seconds to wait for another build of the same folder.

    Raises `SpecError` when `out` is no archc output or holds edited files, `MachineError` when the machine
    cannot write, `ValueError` for paths that would leave the folder and for `force` together with `keep`.
    """
    if force and keep:
        raise ValueError("force and keep exclude each other")
    check_paths(files)
    contents = {path: text.encode() for path, text in files.items()}
    out = locate(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out, wait=wait):
            recover(out)
            return _write(contents, out, force=force, keep=keep)
    except OSError as error:
        raise MachineError(f"cannot write {out}: {error.strerror or error}") from error


def locate(out: Path) -> Path:
    """`out` as an absolute path whose parent has no links; the last part is left as it is.

    Raises `SpecError` where there is no last part (`/`).
    """
    absolute = Path(os.path.abspath(out))
    if not absolute.name:
        raise refuse_folder(absolute, "it is the root of the file system")
    return absolute.parent.resolve() / absolute.name


def read_package(out: Path) -> dict[str, str] | None:
    """The manifest of what stands at `out`; None where there is nothing yet (no folder, or an empty one).

    Raises `SpecError` where something stands there that archc did not write.
    """
    try:
        mode = out.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        raise refuse_folder(out, f"it is a link to {os.readlink(out)}")
    if not stat.S_ISDIR(mode):
        raise refuse_folder(out, "it is a file")
    try:
        return read_manifest(out)
    except NotAPackage as reason:
        if not any(out.iterdir()):
            return None
        raise refuse_folder(out, str(reason)) from None


def _write(contents: Mapping[str, bytes], out: Path, *, force: bool, keep: bool) -> WriteReport:
    """`write_package` under the lock."""
    old = read_package(out)
    edits = find_edits(out, old or {}, contents)
    if edits and not force and not keep:
        raise refuse_edits(out, edits)
    in_the_way = frozenset(edit.path for edit in edits)
    digests = {path: digest(content) for path, content in contents.items()}
    report = _report(contents, out, old or {}, in_the_way, keep=keep)
    if old == digests and not report.written and not report.removed:
        return report
    stage = stage_path(out)
    try:
        _stage(contents, digests, stage, report)
        swap_in(out)
    except BaseException:
        remove_tree(stage)
        raise
    importlib.invalidate_caches()  # who builds and imports in one process finds what is new
    return report


def _report(
    contents: Mapping[str, bytes],
    out: Path,
    old: Mapping[str, str],
    in_the_way: frozenset[str],
    *,
    keep: bool,
) -> WriteReport:
    """Decide what happens to each path, before anything is written."""
    kept = in_the_way if keep else frozenset[str]()
    ours = {*old, *contents, *in_the_way, MANIFEST_NAME}
    wanted = {path for path in contents if not covered(path, kept)}
    same = {path for path in wanted if not covered(path, in_the_way) and _holds(out / path, contents[path])}
    gone = {path for path in old if path not in contents and not covered(path, kept)}
    return WriteReport(
        out=out,
        written=tuple(sorted(wanted - same)),
        unchanged=tuple(sorted(same)),
        removed=tuple(sorted(path for path in gone if os.path.lexists(out / path))),
        kept=tuple(sorted(kept)),
        carried=tuple(p for p in files_below(out) if p not in ours and not covered(p, in_the_way - kept)),
    )


def _stage(
    contents: Mapping[str, bytes], digests: Mapping[str, str], stage: Path, report: WriteReport
) -> None:
    """Put the new folder together: generated files, then what stays the user's, then the manifest."""
    out = report.out
    stage.mkdir()
    for path in (*report.written, *report.unchanged):
        target = stage / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents[path])
    for path in (*report.kept, *report.carried):
        _carry(out / path, stage / path)
    (stage / MANIFEST_NAME).write_bytes(render_manifest(digests))
    if out.exists():
        stage.chmod(stat.S_IMODE(out.stat().st_mode))


def _carry(source: Path, target: Path) -> None:
    """Bring a user's own file along: the same file under a second name, links as links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
    elif source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # a file system without hard links
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    shutil.copy2(source, target, follow_symlinks=False)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a regular file with exactly these bytes stands at `path`."""
    try:
        status = path.lstat()
        return (
            stat.S_ISREG(status.st_mode) and status.st_size == len(content) and path.read_bytes() == content
        )
    except (FileNotFoundError, NotADirectoryError):
        return False
