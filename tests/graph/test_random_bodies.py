"""Whatever equations say, the answer is diagnostics or a package, never an exception."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings

from archc.pipeline import check, sources_of
from archc.spec.diagnostics import NOWHERE
from tests.graph.random_bodies import bodies

verdicts: Counter[str] = Counter()


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_random_equations_are_refused_or_built(spec: dict[str, object]) -> None:
    found = check(spec)
    verdicts["refused" if found else "built"] += 1
    for diagnostic in found:
        assert diagnostic.message and diagnostic.span != NOWHERE, diagnostic
        assert diagnostic.code != "E391", "an exception of an operation, caught"
    if not found:
        for path, text in sources_of(spec).items():
            if path.endswith(".py"):
                compile(text, path, "exec")


def test_the_random_bodies_are_worth_trying() -> None:
    """Many are refused, for many reasons, and some are built: run after the test above."""
    if sum(verdicts.values()) >= 60:
        assert verdicts["built"] >= 5 and verdicts["refused"] >= 10
