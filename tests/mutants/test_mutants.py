"""Each change of one token in templates, rules, library and compiler turns a named test red."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.mutants.tree import REPOSITORY, Mutant, Tree, read_mutants

MUTANTS = read_mutants()
PARTS = {
    "tiles": r"archc/tiles/|templates/recurrence/",
    "runtime": r"templates/runtime/|archc/operations/\w+/runtime\.py",
    "library": r"specs/",
    "compiler": r"archc/(passes|graph|elaboration|printing|codegen|spec|output)/|archc/totals\.py|"
    r"archc/operations/\w+/(?!runtime)\w+\.py",
    "kernels": r"archc/kernels/",
}
SECONDS = 150.0  # most take less than ten; more than this is a hang, which is a finding too


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A copy of the repository, one for each worker."""
    return Tree(tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_list_fits_the_sources(mutant: Mutant) -> None:
    """Where this fails, the line that a mutant changes was rewritten: change its `old` and `new` alike."""
    assert (REPOSITORY / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.changed_tokens() == 1
    assert (REPOSITORY / mutant.test.split("::")[0]).is_file()
    assert mutant.mistake


def test_the_list_is_spread() -> None:
    """Thirty or more, over every part of the compiler; about ten of them run among all slow tests."""
    assert len(MUTANTS) >= 30
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    parts = Counter(part for mutant in MUTANTS for part in PARTS if re.match(PARTS[part], mutant.file))
    assert parts["tiles"] >= 10 and parts["runtime"] >= 8 and parts["library"] >= 6 and parts["compiler"] >= 6
    assert parts["kernels"] >= 3 and sum(m.test.startswith("tests/interpreted/") for m in MUTANTS) >= 10
    assert sum(parts.values()) == len(MUTANTS)
    assert 8 <= sum(mutant.sampled for mutant in MUTANTS) <= 12


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_without_a_change_they_pass(tree: Tree, request: pytest.FixtureRequest) -> None:
    """The named tests are green on the copy, and it is the copy that they import."""
    place = subprocess.run(
        [sys.executable, "-c", "import archc; print(archc.__file__)"],
        cwd=tree.root, env={"PYTHONPATH": str(tree.root), "PATH": ""}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert place == str(tree.root / "archc" / "__init__.py")
    chosen = {item.callspec.params["mutant"].test for item in request.session.items if _runs(item)}
    chosen = chosen or {mutant.test for mutant in MUTANTS}
    interpreted = {test for test in chosen if test.startswith("tests/interpreted/")}
    for tests in filter(None, (chosen - interpreted, interpreted)):  # kernels in a process of their own
        verdict = tree.run(sorted(tests), 1100)
        assert verdict.status == 0, verdict.output


def _runs(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.originalname == "test_turns_red"


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_turns_red(mutant: Mutant, tree: Tree) -> None:
    """By an assertion of the test, or by the diagnostic that the entry names: not by a broken import."""
    with tree.changed(mutant):
        verdict = tree.run([mutant.test], SECONDS)
    assert verdict.status == 1, f"survived, or could not run:\n{verdict.output}"
    assert verdict.errors == 0, verdict.output
    assert verdict.failures, verdict.output
    named = (mutant.raises, "assert ", "Failed: ") if mutant.raises == "AssertionError" else (mutant.raises,)
    assert all(any(name in message for name in named) for message in verdict.failures), verdict.output
