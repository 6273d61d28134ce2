"""Where the files lie that ship with archc and are no Python: `specs/` and `templates/`."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def data_folder(name: str) -> Path:
    """The folder `name`, "specs" or "templates": `archc/_data/<name>` in a wheel, `<root>/<name>` in a checkout.

    Raises `FileNotFoundError` where neither exists, which means that the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"archc's own folder {name!r} is missing: the installation is incomplete")
