"""The registry of error codes: one page each, `archc explain CODE` prints it."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_TITLE = re.compile(r"# (E\d{3}): (.+)")


@cache
def titles() -> dict[str, str]:
    """Every code with the title of its page, in order. Raises ValueError for a page without title."""
    found: dict[str, str] = {}
    for entry in files(__name__).iterdir():
        if not entry.name.endswith(".md"):
            continue
        first = entry.read_text(encoding="utf-8").split("\n", 1)[0]
        match = _TITLE.fullmatch(first)
        if match is None or f"{match.group(1)}.md" != entry.name:
            raise ValueError(f"{entry.name} must begin with `# {entry.name.removesuffix('.md')}: title`")
        found[match.group(1)] = match.group(2)
    return dict(sorted(found.items()))


def page(code: str) -> str | None:
    """The page of a code in Markdown, or None if there is no such code."""
    name = code.strip().upper()
    if not re.fullmatch(r"E\d{3}", name):
        return None
    entry = files(__name__).joinpath(f"{name}.md")
    return entry.read_text(encoding="utf-8") if entry.is_file() else None
