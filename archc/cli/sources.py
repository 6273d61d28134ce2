"""What the user means by a spec on the command line: a file, or the name of a model that ships with archc."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import typer

from archc.data import data_folder

_NAME = re.compile(r"""^name:\s*["']?([A-Za-z_][A-Za-z0-9_]{0,99})["']?\s*(?:#.*)?$""", re.MULTILINE)


def spec_path(text: str, kind: str = "model") -> Path:
    """The file that `text` names: a path, or the name of a packaged model or, with that `kind`, sweep.

    Raises a usage error that lists close names where there is no such thing.
    """
    path = Path(text)
    if path.is_file():
        return path
    if path.is_dir():
        raise typer.BadParameter(f"{text} is a folder; a {'spec' if kind == 'model' else kind} is a file")
    packaged = {file.stem: file for file in sorted((data_folder("specs") / f"{kind}s").glob("*.yaml"))}
    if text in packaged:
        return packaged[text]
    close = difflib.get_close_matches(path.name.removesuffix(".yaml"), packaged, n=3)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"`archc library` lists the {kind}s that ship with it"
    )
    raise typer.BadParameter(f"there is no file {text}, and no packaged {kind} of that name; {hint}")


def package_name(path: Path) -> str:
    """The `name:` of a spec, read without loading it; the file's own name where there is none."""
    with path.open("rb") as file:
        found = _NAME.search(file.read(1_000_000).decode(errors="replace").replace("\r", ""))
    return found.group(1) if found else path.name.split(".")[0]
