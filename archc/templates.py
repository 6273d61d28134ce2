"""Templates as every part of the compiler reads them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from archc.data import data_folder


@cache
def environment(folder: Path | None = None) -> Environment:
    """The templates of a folder, by default archc's own. One object, so that each template is compiled once.

    An unknown name is an error; a line that holds control alone leaves nothing behind.
    """
    found = Environment(
        loader=FileSystemLoader(folder or data_folder("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    found.filters["line"] = line
    found.filters["packed"] = packed
    found.filters["prose"] = prose
    found.filters["prefixed"] = lambda name, prefix: f"{prefix}{name}"
    found.filters["suffixed"] = lambda name, suffix: f"{name}{suffix}"
    return found


def packed(items: Iterable[str], indent: int = 4, suffix: str = "") -> str:
    """Arguments with commas between, as many to a line as there is room for: for what the formatter skips.

    suffix: behind each of them.
    """
    text = ", ".join(f"{item}{suffix}".replace(" ", "\0") for item in items)
    lines = textwrap.wrap(text, 110 - indent, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines).replace("\0", " ")


def line(text: str) -> str:
    """Free text of a spec on one line, as in a comment."""
    return " ".join(text.split())


def prose(text: str) -> str:
    """Free text of a spec on one line of a docstring, which it cannot end; behind it stands no quote."""
    return line(text).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
