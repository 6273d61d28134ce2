"""Every code of this part has bad specs beside the exact text that a user sees, and a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archc.errors import page, titles
from archc.spec.diagnostics import Reporter
from archc.spec.render import render
from archc.spec.resolve import load

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "tests" / "errors"
FIXTURES = sorted(FOLDER.glob("E2*.yaml"))
SOURCES = sorted((REPOSITORY / "archc" / "spec").glob("*.py"))
RAISED = sorted(
    {code for path in SOURCES for code in re.findall(r'"(E2\d\d)"', path.read_text(encoding="utf-8"))}
)


def seen_by_user(fixture: Path) -> str:
    """What `archc check` prints for a fixture, from inside its folder."""
    report, sources = Reporter(), dict[str, str]()
    assert load(fixture.name, report, sources) is None
    return render(sorted(report.diagnostics, key=lambda each: each.span), sources)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_text_is_exact(fixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    text = seen_by_user(fixture)
    assert text == fixture.with_suffix(".txt").read_text(encoding="utf-8")
    assert fixture.stem[:4] in re.findall(r"\bE\d{3}\b", text)


@pytest.mark.parametrize("code", RAISED)
def test_every_code_has_a_page_and_a_fixture(code: str) -> None:
    assert code in titles()
    text = page(code)
    assert text is not None and text.count("```") >= 4, "a page shows the mistake and the way out"
    assert any(path.stem.startswith(code) for path in FIXTURES) or code in {"E200"}


def test_no_page_without_a_code() -> None:
    assert {code for code in titles() if code.startswith("E2")} == set(RAISED)


def test_five_independent_mistakes_show_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    report = Reporter()
    load("E202_five_mistakes.yaml", report)
    assert sorted(each.code for each in report.diagnostics) == ["E202", "E210", "E220", "E222", "E250"]
