"""Templates as every part of the compiler reads them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from archc.data import data_folder


@cache
def environment(folder: Path | None = None) -> Environment:
    """The templates of a folder, by default archc's own. One object, so that each template is compiled once.

    An unknown name is an error; a line that holds control alone leaves nothing behind.
    """
    return Environment(
        loader=FileSystemLoader(folder or data_folder("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
