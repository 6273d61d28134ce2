"""Solves a whole number of a spec for a number of parameters, in few compilations and with a proof of nearness."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from archc.spec.diagnostics import Diagnostic
from archc.sweeps.types import Target

Count = Callable[[int], int]  # parameters of the model with this number

MAX_STEPS = 200


class Unreachable(Exception):
    """The target cannot be met. Carries the diagnostic that says why."""

    def __init__(self, found: Diagnostic) -> None:
        self.found = found
        super().__init__(found.message)


@dataclass(slots=True)
class Guess:
    """Where points with the same target were solved before: a good place to begin. Results never depend on it."""

    number: int
    slope: float  # parameters for each step of the number


@dataclass(slots=True)
class Search:
    """One search over the multiples of `target.step` from `target.low` to `target.high`.

    Parameters must not fall as the number grows. The result is the nearest: unless it is exact or at a bound, a
    neighbour on the other side of the target has been counted too. Of two that are as near, the smaller one.
    """

    target: Target
    wanted: int
    count: Count
    seen: dict[int, int] = field(default_factory=dict)
    guess: Guess | None = None  # what the next search can begin with

    def solve(self, start: Guess | None = None) -> int:
        """The number whose model has the parameters nearest to those wanted. Raises `Unreachable`."""
        at = start.number if start is not None else self._middle()
        for _ in range(MAX_STEPS):
            self._count(at)
            below, above = self._bracket()
            if below is not None and self.seen[below] == self.wanted:
                return self._done(below, start)
            if below is not None and above is not None and above - below == self.target.step:
                low, high = self.wanted - self.seen[below], self.seen[above] - self.wanted
                self.guess = Guess(below, float(self.seen[above] - self.seen[below]))
                return self._done(below if low <= high else above, self.guess)
            at = self._next(below, above, start)
        raise AssertionError("a bisection of at most twenty bits has ended long before")

    def _middle(self) -> int:
        """Where to begin: far below the upper bound, which is only there to end a search."""
        return self._on_grid(min(max(self.target.low, 1024), self.target.high))

    def _on_grid(self, number: float) -> int:
        step = self.target.step
        return min(max(int(number // step) * step, self.target.low), self.target.high)

    def _count(self, at: int) -> None:
        """Count the model at a number, which must fit to what was counted before."""
        if at in self.seen:
            return
        found = self.seen[at] = self.count(at)
        for other, parameters in self.seen.items():
            if (other - at) * (parameters - found) < 0:
                small, large = sorted((at, other))
                raise Unreachable(
                    self._error(
                        "E404",
                        f"parameters fall from {self.seen[small]:,} to {self.seen[large]:,} as "
                        f"`{self._knob()}` grows from {small:,} to {large:,}",
                        note="a number is solved only where parameters grow with it",
                        help="solve for another number, or narrow `from` and `to`",
                    )
                )

    def _bracket(self) -> tuple[int | None, int | None]:
        """The nearest numbers that were counted with at most, and with more than, what is wanted."""
        below = max((at for at, found in self.seen.items() if found <= self.wanted), default=None)
        above = min((at for at, found in self.seen.items() if found > self.wanted), default=None)
        return below, above

    def _next(self, below: int | None, above: int | None, start: Guess | None) -> int:
        target = self.target
        if below is not None and above is not None:
            near = min((below, above), key=lambda at: abs(self.seen[at] - self.wanted))
            slope = self._slope(start)
            at = near + (self.wanted - self.seen[near]) / slope * target.step if slope > 0 else above
            if not below <= at < above or len(self.seen) % 5 == 0:  # a secant is blind to bends and jumps
                at = math.sqrt(below * above)
            return min(max(self._on_grid(at), below + target.step), above - target.step)
        known = below if below is not None else above
        assert known is not None
        if below == target.high or above == target.low:
            raise self._out_of_bounds(known)
        step = self._slope(start)
        if step <= 0:  # the first guess: sizes grow about in proportion
            far = known * self.wanted / max(self.seen[known], 1)
        else:
            far = known + (self.wanted - self.seen[known]) / step * target.step
        # On the near side of a curve steps fall short: each later one is four times as long at least.
        least = target.step * 2 ** max(0, 2 * len(self.seen) - 6)
        at = max(far, known + least) if below is not None else min(far, known - least)
        return self._on_grid(at)

    def _slope(self, start: Guess | None) -> float:
        """Parameters for each step, from the two nearest counts."""
        if len(self.seen) < 2:
            return start.slope if start is not None else 0.0
        (a, first), (b, second) = sorted(self.seen.items(), key=lambda item: abs(item[1] - self.wanted))[:2]
        return (first - second) / (a - b) * self.target.step

    def _out_of_bounds(self, known: int) -> Unreachable:
        target = self.target
        other = target.low if known == target.high else target.high
        if other not in self.seen:
            self._count(other)
        if self.seen[target.low] == self.seen[target.high]:
            return Unreachable(
                self._error(
                    "E404",
                    f"`{self._knob()}` does not change the number of parameters",
                    note=f"the model has {self.seen[known]:,} parameters with {target.low:,} and with "
                    f"{target.high:,}",
                    help="name a number under `by:` that is a size of the model",
                )
            )
        side = "more" if known == target.low else "fewer"
        bound = "from" if known == target.low else "to"
        return Unreachable(
            self._error(
                "E403",
                f"{self.wanted:,} parameters cannot be reached: with `{self._knob()}` at {known:,}, its "
                f"{'least' if known == target.low else 'largest'}, the model has {self.seen[known]:,}, {side} than "
                "that",
                note="" if known in (target.step, 2**20) else f"`{bound}:` sets this bound",
                help="give the other parts of the model a different size, or change the target",
            )
        )

    def _done(self, at: int, guess: Guess | None) -> int:
        self.guess = self.guess or guess
        found = self.seen[at]
        if abs(found - self.wanted) > self.target.within * self.wanted:
            raise Unreachable(
                self._error(
                    "E405",
                    f"the nearest to {self.wanted:,} parameters is {found:,}, with `{self._knob()}` at {at:,}: "
                    f"{percent(found, self.wanted)} off",
                    note=f"`within` allows {float(self.target.within) * 100:g}%",
                    help="a smaller `step` comes nearer; a larger `within` accepts it",
                )
            )
        return at

    def _knob(self) -> str:
        return ", ".join(str(place) for place in self.target.places)

    def _error(self, code: str, message: str, note: str, help: str) -> Diagnostic:
        place = self.target.places[0].span if self.target.places else self.target.span
        return Diagnostic(code, message, place, note=note, help=help)


def percent(found: int, wanted: int) -> str:
    """How far off a count is, with its sign: "-0.21%"."""
    return f"{100 * (found - wanted) / wanted:+.2f}%"
