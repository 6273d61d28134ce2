"""Equations as lines of docstrings."""

from __future__ import annotations

import textwrap


def wrapped(text: str) -> list[str]:
    """An equation as lines of a docstring, those after the first indented."""
    return textwrap.wrap(text, 104, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
