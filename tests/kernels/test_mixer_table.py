"""The committed page of the library's mixers says what a build plans for each of them on every target."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from archc.kernels.targets import load_target, target_names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/mixer_kernels.py as a module."""
    found = importlib.util.spec_from_file_location("mixer_kernels", ROOT / "scripts" / "mixer_kernels.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["mixer_kernels"] = module
    found.loader.exec_module(module)
    return module


def lines_of(page: str) -> dict[str, list[str]]:
    """Mixer -> its lines of the table."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in page.split("|---", 1)[1].splitlines()[1:]:
        if line.startswith("|"):
            name = line.split("`")[1] if line.startswith("| `") else name
            found.setdefault(name, []).append(line)
    return found


@pytest.mark.parametrize("name", ["gated_deltanet", "kda", "mlstm_7b", "fox", "attention"])
def test_a_row_is_what_is_planned(script: ModuleType, name: str) -> None:
    figures = json.loads(script.FIGURES.read_text(encoding="utf-8"))
    detailed, others = script.PAGE.read_text(encoding="utf-8").split("## Every target")
    found = {
        target: [
            script.shown(row, figures["misfits"][target][name])
            for row in script.planned(name, load_target(target))
        ]
        for target in target_names()
    }
    assert lines_of(detailed).get(name, []) == [
        script.line("" if number else name, row) for number, row in enumerate(found[script.DETAILED])
    ]
    assert lines_of(others).get(name, []) == script.across(name, found)


@pytest.mark.slow
def test_the_page_is_current(script: ModuleType) -> None:
    figures = json.loads(script.FIGURES.read_text(encoding="utf-8"))
    assert script.PAGE.read_text(encoding="utf-8") == script.page(figures)


def test_every_mixer_with_a_state_has_a_row(script: ModuleType) -> None:
    rows = lines_of(script.PAGE.read_text(encoding="utf-8").split("## Every target")[0])
    texts = {
        name: (ROOT / "specs" / "mixers" / f"{name}.yaml").read_text(encoding="utf-8")
        for name in script.MIXERS
    }
    recurrent = {name for name, text in texts.items() if "recurrence(" in text or "scan(" in text}
    assert recurrent <= set(rows) <= set(script.MIXERS)
