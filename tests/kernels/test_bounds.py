"""Lower bounds: arithmetic with a target's rates, and the work of a recurrence's kernels."""

from __future__ import annotations

import pytest

from archc.kernels.bounds import Bounds, Work, bounds
from archc.kernels.recurrence import Use, recurrence_kernels
from archc.kernels.report import kernel_bounds
from archc.kernels.targets import load_target
from archc.kernels.work import work_of
from archc.tiles.costs import count
from archc.tiles.kind import RecurrenceKind
from archc.tiles.triton_elementwise import kept
from archc.tiles.views import arguments

H100 = load_target("h100")


def test_each_bound_is_work_over_rate() -> None:
    found = bounds(H100, Work(bytes=3350, flops=989e3, exponentials=132 * 16 * 183, chain=7.5), heads=2)
    assert found.bytes == pytest.approx(1e-9)
    assert found.flops == pytest.approx(1e-9)
    assert found.exponentials == pytest.approx(1e-7)
    assert found.chain == pytest.approx(7.5 * 132 / 989e12 / 2)
    assert found.binding == "exponentials" and found.seconds == found.exponentials


def test_what_is_unknown_does_not_bind() -> None:
    found = bounds(load_target("mi300x"), Work(1.0, 1.0, 1e9, 0.0))
    assert found.exponentials is None and found.binding in ("bytes", "flops")
    # tf32 is no type of this GPU's matrix unit
    assert bounds(load_target("mi355x"), Work(1.0, 1.0, 0.0, 1.0), dtype="tf32") == Bounds(
        1 / 8e12, None, None, None
    )


def test_many_heads_hide_the_chain() -> None:
    work = Work(0.0, 1000.0, 0.0, 1000.0)
    assert bounds(H100, work, heads=1).binding == "chain"
    assert bounds(H100, work, heads=132).flops == pytest.approx(bounds(H100, work, heads=132).chain)
    assert bounds(H100, work, heads=1000).binding == "flops"


@pytest.mark.parametrize("decay", ["none", "head", "key"])
@pytest.mark.parametrize("erase", ["none", "delta", "pair"])
def test_the_kernels_of_a_class_do_its_work_together(decay: str, erase: str) -> None:
    kind = RecurrenceKind(decay=decay, erase=erase)  # type: ignore[arg-type]
    costs = count(kind, 128, 64)
    parts = [work_of(kind, role, 128, 64) for role in ("prepare", "walk")]
    assert sum(part.flops for part in parts if part) == pytest.approx(costs.forward.flops)
    assert sum(part.bytes for part in parts if part) >= costs.forward.bytes
    whole = work_of(kind, "walk", 128, 64)
    half = work_of(kind, "walk", 128, 64, columns=32)
    assert whole is not None and half is not None
    assert half.chain == pytest.approx(whole.chain / 2) and 0 < whole.chain < whole.flops


@pytest.mark.parametrize("rate", [True, False])
def test_a_walk_over_tokens_moves_its_arguments_and_the_states_that_are_kept(rate: bool) -> None:
    kind = RecurrenceKind("elementwise", decay_rate=rate)
    costs, tokens = count(kind, 16, 256), kept(kind)
    walk, back = (work_of(kind, role, 16, 256) for role in ("walk", "walk_back"))
    assert walk is not None and back is not None
    assert walk.bytes == costs.forward.bytes + 4 * 16 * 256 / tokens
    assert back.bytes == costs.backward.bytes + 4 * 16 * 256 / tokens
    assert walk.exponentials == 16 * 256 and 2 < back.exponentials / walk.exponentials < 3
    blocks = work_of(kind, "walk_back", 16, 256, columns=128)  # two numbers in float32 for one in bfloat16
    assert blocks is not None and blocks.bytes - back.bytes == pytest.approx(2 * 16 * (2 * 4 - 2))


def test_no_count_for_other_roles() -> None:
    assert work_of(RecurrenceKind(decay="elementwise"), "prepare", 64, 64) is None
    assert work_of(RecurrenceKind(), "norm", 64, 64) is None


@pytest.mark.parametrize("role", ["decode", "walk", "walk_back"])
def test_token_by_token_there_is_no_product_of_matrices(role: str) -> None:
    """Their FLOP run at the rate of the vector units, some fifteen times slower than matrix instructions."""
    kind = RecurrenceKind("elementwise") if role != "decode" else RecurrenceKind("head", "delta")
    use = Use(64, 64, 4, {argument.name: 4 for argument in arguments(kind)}, None)
    kernel = next(each for each in recurrence_kernels(kind, "made", [use], H100) if each.role == role)
    work = work_of(kind, role, 64, 64, kernel.constants.get("COLUMNS") if role != "decode" else None)
    found = kernel_bounds(kernel, {"made": kind}, H100)
    assert work is not None and found is not None and H100.vector_rate is not None
    assert found.flops == pytest.approx(work.flops / H100.vector_rate) and found.chain == 0.0


def test_a_walk_in_halves_is_known_by_the_scores_that_it_is_handed() -> None:
    kind = RecurrenceKind("head", "pair")
    use = Use(256, 256, 4, {argument.name: 4 for argument in arguments(kind)}, None)
    kernels = recurrence_kernels(kind, "made", [use], H100)
    prepare = next(each for each in kernels if each.role == "prepare")
    found, least = kernel_bounds(prepare, {"made": kind}, H100), work_of(kind, "prepare", 256, 256)
    assert found is not None and least is not None
    assert found.flops is not None and found.flops > 2 * least.flops / H100.matrix_rate["bf16"]
