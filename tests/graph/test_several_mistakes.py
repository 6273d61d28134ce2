"""All mistakes of a spec come at once, and each only once, whatever level of the compiler finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from archc.pipeline import check

FIVE = """\
archc: 1
name: five
model: {vocab_size: 256, d_model: 64, n_layers: 3, context: 128, tied: true}
mixers:
  first:
    body:
      y: linear(x, d_model
  second:
    params: {n_heads: {type: int, default: 4, most: 8}}
    body:
      h: linear(x, [n_heads])
      y: linear(h, d_model)
  third:
    sizes: {head_dim: d_model / 4}
    body:
      q: linear(x, [4, head_dim])
      decay: linear(x, 4)
      o: recurrence(q, q, q, decay=decay, scale=1)
      gate: silu(linear(x, d_model)) * missing
      y: linear(o, d_model) * gate
blocks:
  one: {mixer: {use: first}}
  two: {mixer: {use: second}}
  three: {mixer: {use: third}}
layers: [1 one, 1 two, 1 three]
"""


def codes(text: str, folder: Path) -> list[tuple[str, int]]:
    """The code and the line of each mistake."""
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return [(found.code, found.span.line) for found in check(path)]


def test_five_mistakes_of_three_levels_are_five_errors(tmp_path: Path) -> None:
    assert codes(FIVE, tmp_path) == [("E202", 3), ("E122", 7), ("E202", 9), ("E375", 18), ("E303", 19)]


MENDED = {
    ", tied: true": "",
    "y: linear(x, d_model\n": "y: linear(x, d_model)\n",
    ", most: 8": "",
    "decay: linear(x, 4)": "decay: logsigmoid(linear(x, 4))",
    " * missing": "",
}


@pytest.mark.parametrize("wrong", MENDED)
def test_mending_one_leaves_the_others(wrong: str, tmp_path: Path) -> None:
    before, after = codes(FIVE, tmp_path), codes(FIVE.replace(wrong, MENDED[wrong]), tmp_path)
    assert len(after) == 4 and set(after) < set(before)


def test_without_mistakes_there_is_none(tmp_path: Path) -> None:
    text = FIVE
    for wrong, right in MENDED.items():
        text = text.replace(wrong, right)
    assert codes(text, tmp_path) == []


@pytest.mark.parametrize(
    ("equation", "code"),
    [
        ("q: linear(x, [4, head_dims])", "E303"),  # what reads q says nothing more
        ("q: linear(x, 4, head_dim)", "E310"),
        ("q: linear(q, [4, head_dim])", "E333"),
        ("q, r: silu(x)", "E334"),
        ("q: lineer(x, [4, head_dim])", "E305"),
    ],
)
def test_one_mistake_is_one_error(equation: str, code: str, tmp_path: Path) -> None:
    text = FIVE
    for wrong, right in MENDED.items():
        text = text.replace(wrong, right)
    assert [found for found, _ in codes(text.replace("q: linear(x, [4, head_dim])", equation), tmp_path)] == [
        code
    ]


def test_a_function_with_a_mistake_does_not_spoil_its_callers(tmp_path: Path) -> None:
    text = FIVE
    for wrong, right in MENDED.items():
        text = text.replace(wrong, right)
    broken = 'functions:\n  halve:\n    inputs: {u: "[n]"}\n    body:\n      y: u / (2\nblocks:\n'
    text = text.replace("blocks:\n", broken).replace("y: linear(h, d_model)", "y: linear(halve(h), d_model)")
    assert [code for code, _ in codes(text, tmp_path)] == ["E122"]


def test_an_export_of_a_layer_that_cannot_be_read_is_not_missed(tmp_path: Path) -> None:
    text = FIVE
    for wrong, right in MENDED.items():
        text = text.replace(wrong, right)
    text = text.replace(
        "  first:\n    body:\n      y: linear(x, d_model)",
        "  first:\n    export: [v]\n    body:\n      v: x\n      y: v +",
    )
    text = text.replace("y: linear(h, d_model)", "y: linear(h, d_model) + first(v)")
    assert [code for code, _ in codes(text, tmp_path)] == ["E120"]
