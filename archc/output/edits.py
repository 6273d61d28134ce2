"""Edits by hand in a generated package: finding them, and saying what can be done about them."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from archc.output.manifest import digest
from archc.spec.diagnostics import Diagnostic, SpecError

EDITED = "E901"
NOT_AN_OUTPUT = "E902"

_CACHES = ("__pycache__",)
_FOLDER = b"\0a folder"
_MOST_LINES = 200  # of a diff, in an error


@dataclass(frozen=True, slots=True)
class Edit:
    """Something that stands in the way of a rebuild and is not as archc wrote it.

    `path` is the file, or the link or file that stands where the package has a folder; `diff` leads from it
    to what the rebuild would put there.
    """

    path: str
    diff: str


def find_edits(out: Path, old: Mapping[str, str], new: Mapping[str, bytes]) -> tuple[Edit, ...]:
    """The files under `out` that a rebuild to `new` would destroy and that are not as archc wrote them.

    `old` is the manifest of what archc wrote. A file that is missing, or that already holds the new bytes, is
    no edit. A file of the user's own that stands where the new package has one is.
    """
    found: dict[str, Edit] = {}
    for path in sorted({*old, *new}):
        standing = _standing(out, path)
        if standing is None or standing[0] in found:
            continue
        place, content = standing
        if content == new.get(place) or (place in old and digest(content) == old[place]):
            continue
        if content == _FOLDER and all(f"{place}/{below}" in old for below in files_below(out / place)):
            continue  # a folder of ours, whose files are looked at one by one
        found[place] = Edit(place, _diff(place, content, new.get(place)))
    return tuple(found.values())


def covered(path: str, places: Collection[str]) -> bool:
    """Whether `path` or a folder that it lies in is one of `places`."""
    parts = path.split("/")
    return any("/".join(parts[:n]) in places for n in range(1, len(parts) + 1))


def files_below(folder: Path) -> list[str]:
    """Every file, link and empty folder below `folder`, sorted, links not followed, caches left out."""
    found: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _CACHES)
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = [name for name in folders if name not in linked]
        base = Path(place).relative_to(folder)
        found += [(base / name).as_posix() for name in (*names, *linked)]
        if not names and not folders and not linked and base.parts:
            found.append(base.as_posix())
    return sorted(found)


def refuse_edits(out: Path, edits: tuple[Edit, ...]) -> SpecError:
    """The error that a rebuild over edited files stops with: every diff, and the three ways out."""
    names = ", ".join(edit.path for edit in edits[:5]) + (
        f" and {len(edits) - 5} more" if len(edits) > 5 else ""
    )
    lines = "\n".join(edit.diff for edit in edits).splitlines()
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"... and {len(lines) - _MOST_LINES} more lines"]
    return SpecError(
        [
            Diagnostic(
                EDITED,
                f"edited by hand since archc wrote {out}: {names}",
                note="from the file as it stands to what the rebuild would write:\n" + "\n".join(lines),
                help="--force overwrites the edits, --keep leaves the edited files as they are, and "
                f"`archc eject {out}` makes the package yours for good",
            )
        ]
    )


def refuse_folder(out: Path, reason: str) -> SpecError:
    """The error for a place that archc does not write to."""
    return SpecError(
        [
            Diagnostic(
                NOT_AN_OUTPUT,
                f"{out} is not an output of archc: {reason}",
                note="archc replaces a folder as a whole, so it writes only where nothing stands or it wrote",
                help="name another folder with --out, or remove this one if it holds nothing you need",
            )
        ]
    )


def _standing(out: Path, path: str) -> tuple[str, bytes] | None:
    """What a file written to `out/path` would replace, as path and bytes; None where nothing stands there.

    The path is a shorter one where a file or link stands in place of a folder. What is no regular file has
    bytes that no file of ours has: they start with a zero.
    """
    parts = path.split("/")
    for n in range(1, len(parts) + 1):
        part = "/".join(parts[:n])
        try:
            mode = (out / part).lstat().st_mode
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(mode):
            return part, f"\0a link to {os.readlink(out / part)}".encode()
        if stat.S_ISREG(mode):
            return part, (out / part).read_bytes()
        if not stat.S_ISDIR(mode):
            return part, b"\0a special file"
    return path, _FOLDER


def _diff(path: str, mine: bytes, theirs: bytes | None) -> str:
    if b"\0" in mine:
        return (
            f"--- {path} (as it stands)\n{mine.replace(chr(0).encode(), b'').decode(errors='replace')[:200]}"
        )
    lines = difflib.unified_diff(
        mine.decode(errors="replace").splitlines(),
        [] if theirs is None else theirs.decode().splitlines(),
        f"{path} (as it stands)",
        f"{path} (rebuilt)" if theirs is not None else "no longer part of the package",
        lineterm="",
    )
    return "\n".join(lines)
