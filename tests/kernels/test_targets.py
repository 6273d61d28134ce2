"""Targets: every file is read, rows are found by their conditions, and mistakes are said at their line."""

from __future__ import annotations

import pytest

from archc.kernels.targets import Tile, load_target, read_target, target_names
from archc.spec.diagnostics import SpecError
from archc.spec.render import render

GOOD = """\
target: gpu
title: A GPU
backend: cuda
arch: 90
warp_size: 32
multiprocessors: 4
shared_memory: 1000
bandwidth: 1e12
matrix_rate: {bf16: 2e12}
matrix_instruction: wgmma
tiles:
  - {role: walk, decay: [head, none], K: 128, columns: 64, num_warps: 8, num_stages: 2, screened: [3.7.1]}
  - {role: walk, num_warps: 4, num_stages: 1}
"""


def complaint(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        read_target(text, "gpu.yaml")
    return render(list(caught.value.diagnostics), {"gpu.yaml": text})


def test_every_target_is_read() -> None:
    assert target_names() == ["a100", "b200", "h100", "h200", "mi300x", "mi355x", "rtx4090", "rtx5090"]
    for name in target_names():
        target = load_target(name)
        assert target.name == name
        assert target.backend == ("hip" if isinstance(target.arch, str) else "cuda")
        assert (target.tensor_memory > 0) == (target.matrix_instruction == "tcgen05")


def test_rates_agree_with_clock_and_multiprocessors() -> None:
    # Matrix FLOP of a multiprocessor and clock are round numbers: a slip in one of the three figures shows.
    for name, each in (("a100", 2048), ("rtx4090", 512), ("h100", 4096), ("rtx5090", 512), ("mi300x", 2048)):
        target = load_target(name)
        assert target.clock is not None
        derived = each * target.multiprocessors * target.clock
        assert derived == pytest.approx(target.matrix_rate["bf16"], rel=5e-3), name


def test_no_such_target() -> None:
    with pytest.raises(ValueError, match="a100"):
        load_target("nothing")


def test_the_first_row_whose_conditions_hold_is_taken() -> None:
    target = read_target(GOOD, "gpu.yaml")
    assert target.tile("walk", decay="head", K=128, dtype="bf16") == Tile(64, 8, 2)
    assert target.tile("walk", decay="key", K=128) == Tile(0, 4, 1)
    assert target.tile("walk", decay="head", K=64) == Tile(0, 4, 1)
    assert target.tile("prepare", decay="head") is None


def test_what_no_source_gives_is_unknown() -> None:
    target = read_target(GOOD, "gpu.yaml")
    assert (target.tensor_memory, target.exponentials, target.clock) == (0, None, None)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("title: A GPU\n", "", "`title` is missing"),
        ("arch: 90", "arch: sm_90", "`arch` is a number such as 90"),
        ("bandwidth: 1e12", "bandwidth: fast", "`bandwidth` is a number above 0, not fast"),
        ("backend: cuda", "backend: metal", "`backend` is cuda or hip, not metal"),
        ("bf16: 2e12", "bf17: 2e12", "there is no `bf17` here"),
        ("num_warps: 4", "num_warps: 3", "`num_warps` is one of 1, 2, 4, 8, 16, not 3"),
        ("num_warps: 4, ", "", "this row does not say its `num_warps`"),
        ("columns: 64", "colums: 64", "there is no `colums` here"),
        ("decay: [head, none]", "decay: [heads]", "`decay` is none or constant or head"),
        ("screened: [3.7.1]", "screened: [3.7]", "versions of Triton"),
        ("arch: 90", "arch: 90\ngated_gradients_since: 3.7", "is a version of Triton, as 3.7.1"),
        ("tiles:\n", "tiles:\n  - {role: walk, num_warps: 1, num_stages: 1}\n", "never used: row 1 holds"),
    ],
)
def test_a_mistake_is_said_at_its_line(old: str, new: str, says: str) -> None:
    text = complaint(GOOD.replace(old, new))
    assert "E503" in text and says in text and "gpu.yaml:" in text
