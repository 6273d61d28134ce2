"""Leaves most cases of a test to a later suite; a sample of them runs with every change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], kept: int | Callable[[Any], bool], mark: str = "slow") -> list[Any]:
    """The cases as parameters, all slow but every `kept`-th, or but those for which `kept` is true.

    `mark`: what the others are instead of slow.
    """
    found = []
    for number, case in enumerate(cases):
        quick = number % kept == 0 if isinstance(kept, int) else kept(case)
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=() if quick else getattr(pytest.mark, mark)))
    return found
