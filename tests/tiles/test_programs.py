"""Tile programs: the counts of the normal form, the split into phases, the reverse against autograd."""

from __future__ import annotations

import pytest
import torch

from archc.tiles.emulate import run
from archc.tiles.forward import forward
from archc.tiles.kind import DECAYS, ERASES, FORMS, RecurrenceKind, form_of
from archc.tiles.reverse import RULES, reverse
from archc.tiles.schedule import schedule
from tests.tiles.cases import all_kinds, defined, difference, label, make

CORES = [
    kind
    for kind in all_kinds()
    if kind == kind.core() and form_of(kind).form == "chunk" and kind.read == "inclusive"
]


@pytest.mark.parametrize(
    ("decay", "erase", "pairs"),
    [
        ("none", "none", 1), ("head", "none", 1), ("key", "none", 1), ("value", "none", 1),
        ("none", "delta", 2), ("head", "delta", 2), ("key", "delta", 2),
        ("none", "pair", 4), ("head", "pair", 4), ("key", "pair", 4),
    ],
)  # fmt: skip
def test_normal_form_counts(decay: str, erase: str, pairs: int) -> None:
    """Equal rows are one tile: no more pair products than different pairs of base rows."""
    program = forward(RecurrenceKind(decay, erase))  # type: ignore[arg-type]
    assert program.count("pair") == pairs
    assert program.count("invert") == (erase != "none")
    assert program.count("update") == 1


def test_gated_delta_reads_as_the_mathematics() -> None:
    assert str(forward(RecurrenceKind("head", "delta"))).splitlines() == [
        " 1  G = cumulative(decay)",
        " 2  kk = pair(k^+, beta*k^-, strict)",
        " 3  qk = pair(q^+, beta*k^-, inclusive)",
        " 4  X = invert(kk)",
        " 5  R = read(k^+, S)",
        " 6  E = - combine(v, R)",
        " 7  U = solve(X, E, kk)",
        " 8  S_next = update(S, beta*k^-, U)",
        " 9  o = read(q^+, S)",
        " 9  o += apply(qk, U, inclusive)",
    ]


@pytest.mark.parametrize("kind", CORES, ids=label)
def test_every_operation_has_a_rule_and_the_reverse_uses_no_other(kind: RecurrenceKind) -> None:
    program = forward(kind)
    assert {step.operation for step in program.steps} <= set(RULES)
    allowed = {"pair", "apply", "solve", "read", "project", "update", "combine", "contract", "gather"}
    allowed |= {"add", "extract", "scale"}
    assert {step.operation for step in reverse(program).steps} <= allowed


@pytest.mark.parametrize("kind", CORES, ids=label)
def test_phases(kind: RecurrenceKind) -> None:
    """The walk holds what depends on the state in a circle, and no pair product nor inverse."""
    split = schedule(forward(kind), "S", "S_next", stored=True)
    walked = [step.operation for step in split.walk]
    expected = {
        "none": ["update"],
        "delta": ["read", "combine", "solve", "update"],
        "pair": ["read", "solve", "update"],
    }
    assert walked == expected[kind.erase]
    assert {step.result for step in split.finish} == {"o"}
    back = schedule(reverse(forward(kind)), "dS_next", "dS", stored=False)
    assert not {"pair", "invert", "apply"} & {step.operation for step in back.walk}


@pytest.mark.parametrize("kind", CORES, ids=label)
def test_reverse_is_the_gradient(kind: RecurrenceKind) -> None:
    """The derived reverse, interpreted directly in float64, against autograd through the token loop."""
    case = make(kind, 150)
    expected, memory = defined(case)
    found = run(kind, case.tensors, torch.float64, scale=case.scale, state=case.memory["s"])
    assert difference(found.o, expected) < 1e-12
    assert difference(found.S, memory["s"]) < 1e-12
    do, dS = torch.randn_like(expected), torch.randn_like(memory["s"])
    gradients = found.backward(do, dS)
    exact = torch.autograd.grad((expected * do).sum() + (memory["s"] * dS).sum(), case.leaves())
    for name, gradient in zip(case.names(), exact, strict=True):
        assert difference(gradients["state" if name == "s" else name], gradient) < 1e-12, name


@pytest.mark.parametrize("kind", CORES, ids=label)
def test_rounding_is_that_of_the_dtype(kind: RecurrenceKind) -> None:
    """bf16 has 8 bits: the rounded program errs by more than one unit and by less than a few dozen."""
    case = make(kind, 150, K=16, V=16)
    expected, _ = defined(case)
    found = run(kind, case.tensors, torch.bfloat16, scale=case.scale, state=case.memory["s"])
    assert found.o.dtype == torch.bfloat16
    assert 2**-10 < difference(found.o.double(), expected) < 2**-4


def test_the_table_is_complete_and_says_why() -> None:
    assert set(FORMS) == {(decay, erase) for decay in DECAYS for erase in ERASES}
    for kind in (
        RecurrenceKind("value", "delta"), RecurrenceKind("elementwise", "pair"),
        RecurrenceKind("head", "delta", "previous"),
        RecurrenceKind("value", normalize="sum"), RecurrenceKind("head", log_input=True), RecurrenceKind(chunk=48),
        RecurrenceKind("key", normalize="max", log_input=True), RecurrenceKind("head", decay_rate=True),
    ):  # fmt: skip
        verdict = form_of(kind)
        assert verdict.form == "error"
        assert len(verdict.reason) > 20
        with pytest.raises(ValueError, match=r"\w"):
            forward(kind)
