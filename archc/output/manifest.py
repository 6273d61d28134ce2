"""The manifest of a generated package: a sha256 per file, the same bytes on any machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_LARGEST = 16 * 1024 * 1024  # bytes; a manifest holds about a hundred a file
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class NotAPackage(Exception):
    """The folder has no manifest that archc wrote."""


def digest(content: bytes) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def render_manifest(digests: Mapping[str, str]) -> bytes:
    """The bytes of a manifest: sorted, with no time, no version and no path of a machine."""
    text = json.dumps({"archc_manifest": _FORMAT, "files": dict(sorted(digests.items()))}, indent=2)
    return text.encode() + b"\n"


def read_manifest(folder: Path) -> dict[str, str]:
    """Path -> sha256 of what archc wrote into `folder`.

    Raises `NotAPackage`, with the reason, where there is no manifest or it is not one of ours. What it lists
    has passed `check_paths`, so it can be joined to `folder` without leaving it.
    """
    path = folder / MANIFEST_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotAPackage(f"it has no {MANIFEST_NAME}") from None
    except OSError as error:
        raise NotAPackage(f"its {MANIFEST_NAME} cannot be read ({error.strerror})") from None
    try:
        with open(descriptor, "rb") as file:
            content = file.read(_LARGEST + 1)
        found = json.loads(content) if len(content) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("archc_manifest") != _FORMAT:
        raise NotAPackage(f"its {MANIFEST_NAME} is not one that archc wrote")
    files = found.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(d, str) and _DIGEST.match(d) for d in files.values()
    ):
        raise NotAPackage(f"its {MANIFEST_NAME} is damaged")
    try:
        check_paths(files)
    except ValueError as error:
        raise NotAPackage(f"its {MANIFEST_NAME} is damaged: {error}") from None
    return dict(files)


def check_paths(paths: Iterable[str]) -> None:
    """Check that paths stay inside the folder and do not get in each other's way.

    Raises ValueError for an absolute path, `..`, empty parts, backslashes, control characters, the manifest's
    own name, two paths that differ only by case, and a file that is another file's folder.
    """
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for path in sorted(paths):
        parts = path.split("/")
        if not path or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{path!r} is not a plain relative path")
        if "\\" in path or ":" in path or not path.isprintable() or len(path.encode(errors="replace")) > 1000:
            raise ValueError(f"{path!r} is not a portable path")
        folded = path.casefold()
        if folded == MANIFEST_NAME:
            raise ValueError(f"{path!r} is the manifest's own name")
        if folded in seen:
            raise ValueError(f"{path!r} and {seen[folded]!r} differ only by case")
        seen[folded] = path
        folders.update("/".join(parts[:n]).casefold() for n in range(1, len(parts)))
    for folded in folders & seen.keys():
        raise ValueError(f"{seen[folded]!r} is both a file and a folder")
