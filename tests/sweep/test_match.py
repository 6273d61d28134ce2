"""The search for equal parameters, against counting everything; how many compilations it takes; what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archc.spec.diagnostics import NOWHERE
from archc.sweeps.match import Guess, Search, Unreachable
from archc.sweeps.places import Place
from archc.sweeps.types import Target


def target(step: int = 1, low: int = 1, high: int = 2**20, within: Fraction = Fraction(100)) -> Target:
    low, high = -(-low // step) * step, high // step * step
    return Target({}, "", (Place(NOWHERE, ("model", "d_model")),), step, low, high, within, NOWHERE)


def solved(
    goal: Target, wanted: int, count: Callable[[int], int], start: Guess | None = None
) -> tuple[int, Search]:
    search = Search(goal, wanted, count)
    return search.solve(start), search


@given(
    increments=st.lists(st.integers(0, 50), min_size=2, max_size=60),
    wanted=st.integers(1, 1500),
    start=st.one_of(st.none(), st.tuples(st.integers(1, 60), st.floats(0.1, 100))),
)
def test_the_nearest_of_all(increments: list[int], wanted: int, start: tuple[int, float] | None) -> None:
    """Whatever parameters grow like, plateaus and jumps too, and wherever the search begins."""
    counts = dict(enumerate(accumulate(increments, initial=5), 1))
    goal = target(high=len(counts))
    guess = Guess(min(start[0], len(counts)), start[1]) if start else None
    if not counts[1] <= wanted <= counts[len(counts)] or counts[1] == counts[len(counts)] != wanted:
        with pytest.raises(Unreachable):
            solved(goal, wanted, counts.__getitem__, guess)
        return
    number, search = solved(goal, wanted, counts.__getitem__, guess)
    assert abs(counts[number] - wanted) == min(abs(count - wanted) for count in counts.values())
    assert all(search.seen[at] == counts[at] for at in search.seen)


@given(
    a=st.integers(1, 10**6),
    b=st.integers(1, 10**5),
    c=st.integers(0, 100),
    where=st.floats(64, 500_000),
    step=st.sampled_from([1, 16, 64, 256]),
)
def test_sizes_take_few_compilations(a: int, b: int, c: int, where: float, step: int) -> None:
    """Parameters are linear in an MLP's size and quadratic in a model's: a handful is enough, with a proof."""

    def count(number: int) -> int:
        return a + b * number + c * number**2

    wanted = count(int(max(where, step)))
    number, search = solved(target(step), wanted, count)
    assert number % step == 0
    assert abs(count(number) - wanted) <= min(
        abs(count(other) - wanted) for other in (number - step, number + step) if other >= step
    )
    assert len(search.seen) <= (5 if not c else 13)


def test_the_next_point_begins_where_the_last_one_ended() -> None:
    wanted = 340_000_000
    _, first = solved(target(64), wanted, lambda number: 130_000_000 + 73_728 * number)
    _, second = solved(target(64), wanted, lambda number: 131_000_000 + 73_728 * number, first.guess)
    assert len(first.seen) <= 4 and len(second.seen) <= 3


def test_of_two_as_near_the_smaller() -> None:
    assert solved(target(), 15, lambda number: 10 * number)[0] == 1


@pytest.mark.parametrize(
    ("count", "wanted", "code", "words"),
    [
        (lambda number: 10 * number, 5, "E403", "10, more than that"),
        (lambda number: 10 * number, 5000, "E403", "1,000, fewer than that"),
        (lambda number: 77, 5000, "E404", "does not change"),
        (lambda number: 77, 5, "E404", "does not change"),
        (lambda number: 5000 - number, 4990, "E404", "parameters fall from"),
        (lambda number: 1000 * number, 2400, "E405", "-16.67% off"),
    ],
)
def test_what_is_refused(count: Callable[[int], int], wanted: int, code: str, words: str) -> None:
    with pytest.raises(Unreachable) as caught:
        solved(target(high=100, within=Fraction(1, 100)), wanted, count)
    assert caught.value.found.code == code and words in caught.value.found.message
    assert caught.value.found.help


def test_a_bound_that_is_exact_is_met() -> None:
    assert solved(target(high=100), 10, lambda number: 10 * number)[0] == 1
    assert solved(target(high=100), 1000, lambda number: 10 * number)[0] == 100
    assert solved(target(high=100), 77, lambda number: 77)[1].seen
