"""Damaged specs: whatever is cut out of or put into a good one, the answer is a list of mistakes, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archc.pipeline import check
from archc.spec.render import render
from tests.errors.direct import diagnostics_of

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = sorted((REPOSITORY / "specs" / "models").glob("*.yaml"))
BODIES = sorted((REPOSITORY / "specs").glob("*/*.yaml"))

PIECES = st.sampled_from(
    [
        "",
        "\n",
        "  ",
        ":",
        ": ",
        "#",
        " #",
        "- ",
        ",",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "|",
        "*",
        "**",
        "&x ",
        "!",
    ]
    + [
        "none",
        "true",
        "0",
        "-1",
        "1e9",
        "10 ** 9",
        ".inf",
        ".nan",
        "null",
        "x",
        "layer",
        "d_model",
        "y",
        "if",
    ]
    + [
        "use",
        "body",
        "linear(x, [d_model])",
        "recurrence(q, k, v)",
        "shared",
        " else ",
        "'",
        '"',
        "{}",
        "[]",
        "1/0",
        "mixer",
    ]
    + ["{}", "[]", "1/0", "mixer", "extends: a.yaml\n", "\u00e9", "\x00"]
)


def _damage(text: str, cuts: list[tuple[float, int, str]]) -> str:
    for where, length, piece in cuts:
        at = int(where * len(text))
        text = text[:at] + piece + text[at + length :]
    return text


DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), PIECES), min_size=1, max_size=3)


@given(st.sampled_from(BODIES), DAMAGE)
def test_text_level(path: Path, cuts: list[tuple[float, int, str]]) -> None:
    text = _damage(path.read_text(encoding="utf-8"), cuts)
    assert render(diagnostics_of(text, "spec.yaml"), {"spec.yaml": text}) is not None


@given(path=st.sampled_from(MODELS), cuts=DAMAGE)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whole_specs(tmp_path: Path, path: Path, cuts: list[tuple[float, int, str]]) -> None:
    broken = tmp_path / "spec.yaml"
    broken.write_text(_damage(path.read_text(encoding="utf-8"), cuts), encoding="utf-8", newline="")
    sources: dict[str, str] = {}
    assert isinstance(render(check(broken, sources), sources), str)


@pytest.mark.parametrize(
    "value", [{}, {"archc": 1}, {1: 2}, {"archc": [[[]]]}, {"model": {"d_model": 1e999}}, {"name": object()}]
)
def test_mappings_of_python(value: dict[str, object]) -> None:
    """`archc.check` takes a mapping as well: what is no spec is refused like a file."""
    assert check(value)
