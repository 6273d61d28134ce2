"""Pages that list what is elsewhere are what a rebuild makes of it."""

from __future__ import annotations

import subprocess
import sys

from tests.docs.pages import ROOT


def test_pages_are_as_a_rebuild_makes_them() -> None:
    """`make docs` would change nothing."""
    command = [sys.executable, "scripts/rebuild_docs.py", "--check"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_every_operation_and_entry_is_listed() -> None:
    """What can be called, and what can be used, is on its page; what cannot be called is not."""
    from archc.graph.functions import FUNCTIONS, OPERATORS
    from archc.operations.registry import operations

    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for name, operation in operations().items():
        assert (f"### `{name}(" in page) == bool(operation.signature.arguments), name
    for name, function in FUNCTIONS.items():
        assert function.boolean or name in (*OPERATORS.values(), "neg") or f"| `{name}(" in page, name
    library = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    for path in (ROOT / "specs").glob("*/*.yaml"):
        if path.parent.name in ("mixers", "mlps", "blocks", "functions", "models"):
            assert f"### [{path.stem}](../specs/{path.parent.name}/{path.name})" in library
