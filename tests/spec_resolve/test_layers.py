"""The forms of `layers:`, against lists written out, and their cost at great depth."""

from __future__ import annotations

import time

import pytest
from helpers import BLOCKS, MODEL, codes_of, spec_of


def names(layers: str, depth: str = "n_layers: 8, ") -> str:
    text = MODEL.replace("n_layers: 8, ", depth) + BLOCKS + f"layers: {layers}\n"
    return "".join(spec_of(text).layers.names)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("[3 a, 1 b]", "aaabaaab"),
        ("[a, b]", "abababab"),
        ("[2 a, b]", "aabaabaa"),  # the last cycle is cut
        ("[a, a, a, a, b, b, b, b]", "aaaabbbb"),
        ("3:1", "aaabaaab"),
        ("{ratio: 3:1, blocks: [b, a]}", "bbbabbba"),
        ("{default: a, b: [1, 4-6]}", "abaabbba"),
        ("{default: a, b: -1}", "aaaaaaab"),
        ("{a: [0-3], b: [4-7]}", "aaaabbbb"),
        ('{pattern: "**-*-**-", letters: {"*": a, "-": b}}', "aababaab"),
    ],
)
def test_forms(layers: str, expected: str) -> None:
    assert names(layers) == expected


def test_depth_follows_from_layers() -> None:
    assert names("[3 a, 1 b]", "") == "aaab"
    spec = spec_of(
        MODEL.replace("n_layers: 8, ", "") + BLOCKS + "layers: {pattern: AAB, letters: {A: a, B: b}}\n"
    )
    assert spec.settings.n_layers == 3


def test_a_cycle_is_kept_also_where_the_depth_runs_through_it_once() -> None:
    assert spec_of(MODEL + BLOCKS + "layers: [3 a, 1 b]\n").layers.cycle == (("a", 3), ("b", 1))
    assert spec_of(MODEL + BLOCKS + "layers: [7 a, 1 b]\n").layers.cycle == (("a", 7), ("b", 1))


@pytest.mark.parametrize(
    ("layers", "code"),
    [
        ("[9 a, b]", "E251"),
        ("{pattern: ab, letters: {a: a, b: b}}", "E251"),
        ("[0 a, b]", "E256"),
        ("{default: a, b: [8]}", "E252"),
        ("{default: a, b: -9}", "E252"),
        ("{default: a, b: [6-4]}", "E252"),
        ("{default: a, b: [1, 1]}", "E253"),
        ("{a: [0-3], b: [5-7]}", "E254"),
        ("[]", "E255"),
        ("[[a]]", "E255"),
        ("{default: a, c: [1]}", "E250"),
        ("{ratio: 3:1:1, blocks: [a, b]}", "E258"),
        ("{ratio: a, blocks: [a, b]}", "E255"),
        ("{ratio: 3:1, block: [a, b]}", "E202"),
    ],
)
def test_mistakes(layers: str, code: str) -> None:
    assert code in codes_of(MODEL + BLOCKS + f"layers: {layers}\n")


def test_depth_is_free() -> None:
    """1,000 layers load in the time of 8, and no layer costs a tenth of a millisecond."""

    def seconds(depth: int) -> float:
        text = MODEL.replace("n_layers: 8", f"n_layers: {depth}") + BLOCKS + "layers: [3 a, 1 b]\n"
        spec_of(text)
        start = time.process_time()
        for _ in range(3):
            assert len(spec_of(text).layers.names) == depth
        return (time.process_time() - start) / 3

    assert seconds(1000) - seconds(8) < 0.1
