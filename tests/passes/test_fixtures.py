"""Each pass has a folder: a spec, and the graph as text before and after the pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archc.passes import PASSES
from archc.pipeline import graph_of, show

HERE = Path(__file__).parent
NAMES = ["build", *(name for name, _ in PASSES)]
REWRITE = os.environ.get("ARCHC_REWRITE_FIXTURES") == "1"  # writes the texts anew; read the diff


@pytest.mark.parametrize("name", NAMES[1:])
def test_graph_before_and_after(name: str) -> None:
    spec = HERE / name / "spec.yaml"
    texts = {"before": show(spec, after=NAMES[NAMES.index(name) - 1]), "after": show(spec, after=name)}
    for moment, text in texts.items():
        expected = HERE / name / f"{moment}.txt"
        if REWRITE:
            expected.write_text(text, encoding="utf-8")
        assert text == expected.read_text(encoding="utf-8")
        assert str(HERE) not in text, "the same text on every machine"
    assert texts["before"] != texts["after"], "a fixture shows what its pass does"


def test_each_pass_has_a_folder_and_each_folder_a_pass() -> None:
    assert {folder.name for folder in HERE.iterdir() if (folder / "spec.yaml").exists()} == set(NAMES[1:])


@pytest.mark.parametrize("name", ["remove_unused", "safe_expressions", "simplify", "merge_equal", "tidy"])
def test_a_pass_changes_nothing_the_second_time(name: str) -> None:
    """Passes that rewrite are finished after one run; the others mark or add what later passes rely on."""
    change = dict(PASSES)[name]
    for module in graph_of(HERE / name / "spec.yaml", after=name).modules.values():
        assert change(module.subgraph) == module.subgraph
