"""What docs/library.md claims of each mixer is what the tests hold it to."""

from __future__ import annotations

import json
from pathlib import Path

from tests.laws.subjects import LIBRARY, laws_of, others_of
from tests.oracles.row import MIXERS

CLAIMS = json.loads((Path(__file__).resolve().parents[2] / "docs" / "library_laws.json").read_text())


def test_every_mixer_has_claims() -> None:
    mixers = {path.stem for path in MIXERS.glob("*.yaml")}
    assert mixers - set(LIBRARY) == set(), "these need tests/oracles/<mixer>.py"
    assert set(CLAIMS) == mixers, "make library"


def test_claims_are_the_laws_that_tests_run() -> None:
    """Each of them is a test of the suites, red when it fails; `make library` writes what it found."""
    for mixer, found in CLAIMS.items():
        assert set(found) == {"passed"}, f"{mixer} fails {found.get('failed')}"
        assert set(found["passed"]) == {*laws_of(mixer), *others_of(mixer)}, f"{mixer}: make library"
