"""What `selftest` checks: the classes of recurrence in this package, with the sizes that the model calls them with."""

from __future__ import annotations

from typing import NamedTuple

TARGET = "h100"


class Recurrence(NamedTuple):
    """A class of recurrence as the model calls it."""

    module: str
    shapes: dict[str, tuple[int, ...]]  # of each argument behind [B, T]; `rate` has no [B, T]
    queries: int  # heads of q in a decode step, a multiple of those in `shapes`
    wide: tuple[str, ...]  # arguments that are float32 in every model
    bounded: bool  # every log decay lies in [-5, 0]


RECURRENCES: list[Recurrence] = [
    Recurrence(
        "head_decay", {"q": (2, 32), "k": (2, 32), "v": (12, 32), "decay": (12,)}, 2, ("decay",), False
    ),
]
