"""Leaves most cases of a test to the slow suite; a sample of them runs with every change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], kept: int | Callable[[Any], bool]) -> list[Any]:
    """The cases as parameters, all slow but every `kept`-th, or but those for which `kept` is true."""
    found = []
    for number, case in enumerate(cases):
        quick = number % kept == 0 if isinstance(kept, int) else kept(case)
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=() if quick else pytest.mark.slow))
    return found
