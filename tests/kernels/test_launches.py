"""Which launches of a recurrence are compiled ahead of time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archc.kernels.fit import judge
from archc.kernels.kernel import Kernel
from archc.kernels.recurrence import Use, recurrence_kernels
from archc.kernels.targets import load_target
from archc.tiles.kind import RecurrenceKind
from archc.tiles.views import arguments

H100 = load_target("h100")


def launched(kind: RecurrenceKind, K: int = 128, V: int = 128) -> dict[tuple[str, str], Kernel]:
    """Everything but the decode step, by role and case."""
    use = Use(K, V, 4, {argument.name: 4 for argument in arguments(kind)}, None)
    found = recurrence_kernels(kind, "made", [use], H100)
    return {(kernel.role, kernel.case): kernel for kernel in found if kernel.role != "decode"}


def test_packed_sequences_that_continue_are_compiled_as_well() -> None:
    found = launched(RecurrenceKind("head", "delta"))
    for role in ("prepare", "walk"):
        plain, packed = found[role, ""], found[role, "packed"]
        assert not plain.constants["PACKED"] and packed.constants["PACKED"]
    assert not found["walk", ""].constants["INITIAL"] and found["walk", "packed"].constants["INITIAL"]


def test_the_case_stands_beside_the_name() -> None:
    fit = judge(launched(RecurrenceKind("head"))["walk", "packed"], H100, None, "3.7.1")
    assert fit.title == "walk (packed)"


@pytest.mark.parametrize(
    ("kind", "K", "spans"),
    [
        (RecurrenceKind("head"), 256, True),
        (RecurrenceKind("head", "delta"), 128, True),
        (RecurrenceKind("head", "delta"), 256, False),  # a matrix [K, K] beside the state is too large
        (RecurrenceKind("head", normalize="sum"), 64, False),
    ],
    ids=["no erase", "erase", "erase with a wide state", "normaliser"],
)
def test_which_classes_walk_in_spans(kind: RecurrenceKind, K: int, spans: bool) -> None:
    found = launched(kind, K)
    assert (("walk_ahead", "") in found) == (("carry", "") in found) == spans
    assert ("def walk_ahead(" in found["walk", ""].source) == spans
    if spans:
        assert "MULTIPROCESSORS = 132" in found["walk", ""].source
        assert found["carry", ""].constants["PACKED"] and found["carry", ""].constants["INITIAL"]


def test_a_target_without_a_row_for_it_walks_sequences_whole() -> None:
    rows = tuple(row for row in H100.tiles if row["role"] != "carry")
    use = Use(128, 128, 4, {argument.name: 4 for argument in arguments(RecurrenceKind())}, None)
    found = recurrence_kernels(RecurrenceKind(), "made", [use], replace(H100, tiles=rows))
    assert not {"walk_ahead", "carry"} & {kernel.role for kernel in found}
