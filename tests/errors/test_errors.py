"""Every error code has a page, a bad spec that shows it, and the exact text that a user reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from archc.errors import page, titles
from archc.pipeline import check
from archc.spec.render import render

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "archc"
FIXTURES = sorted(HERE.glob("E*.yaml"))
REWRITE = os.environ.get("ARCHC_REWRITE_FIXTURES") == "1"  # writes the .txt files anew; read the diff


# Codes whose cause is not in a spec: tests beside the code that reports them show these.
NOT_A_SPEC: frozenset[str] = frozenset(
    {"E200", "E390", "E391", "E399", "E501", "E502", "E503", "E901", "E902"}
)


def _codes_in_source() -> set[str]:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.rglob("*.py")))
    return set(re.findall(r'"(E\d{3})"', text))


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_text_of_each_error(fixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    sources: dict[str, str] = {}
    found = check(Path(fixture.name), sources)
    text = render(found, sources)
    expected = fixture.with_suffix(".txt")
    if REWRITE:
        expected.write_text(text, encoding="utf-8")
    assert fixture.stem.split("_")[0] in {diagnostic.code for diagnostic in found}, text
    assert text == expected.read_text(encoding="utf-8")


def test_each_code_has_a_page_and_each_page_a_code() -> None:
    assert _codes_in_source() == set(titles())


def test_each_code_has_a_fixture() -> None:
    shown = {fixture.stem.split("_")[0] for fixture in FIXTURES}
    assert {code for code in titles() if code not in NOT_A_SPEC} <= shown


def test_each_fixture_has_its_text_and_the_other_way_round() -> None:
    assert {path.stem for path in FIXTURES} == {path.stem for path in HERE.glob("E*.txt")}


@pytest.mark.parametrize("code", sorted(titles()))
def test_page_says_what_and_how(code: str) -> None:
    text = page(code)
    assert text is not None and text.startswith(f"# {code}: ") and text.endswith("\n")
    assert len(text.split("\n\n")) >= 3, "a page has a title, a meaning and a way out"
