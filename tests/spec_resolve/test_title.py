"""What a spec says it is stands where a reader of its package looks first."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from archc.pipeline import sources_of
from archc.spec.diagnostics import Reporter
from archc.spec.resolve import load
from archc.spec.resolved_text import resolved_text

BASE = {
    "archc": 1,
    "name": "told",
    "title": "A model of one layer, for this test.",
    "source": "Somebody 2026",
    "model": {"vocab_size": 32, "d_model": 32, "n_layers": 1, "context": 64, "norm": "rmsnorm"},
    "blocks": {"main": {"mixer": {"use": "attention", "n_heads": 2}, "mlp": {"use": "swiglu", "d_ff": 32}}},
}


def docstrings(spec: object) -> tuple[str, str]:
    """Those of the package and of its model."""
    files = sources_of(spec)  # type: ignore[arg-type]
    package, model = (ast.get_docstring(ast.parse(files[path])) for path in ("__init__.py", "model.py"))
    assert package and model
    return package, model


def test_it_heads_the_package_and_the_model() -> None:
    package, model = docstrings(BASE)
    assert package.startswith("told: A model of one layer, for this test.\n\nMade by archc from told.yaml")
    assert model.startswith("told: A model of one layer, for this test.\n\nSomebody 2026\n\n")
    package, model = docstrings({key: BASE[key] for key in BASE if key not in ("title", "source")})
    assert package.startswith("told.\n\nMade by") and model[:6] == "told.\n" and "\n\n\n" not in model
    package, _ = docstrings(BASE | {"title": "long " * 50})
    assert max(map(len, package.splitlines())) <= 104


@pytest.mark.parametrize("own", [{}, {"title": "Another"}])
def test_another_file_speaks_of_another_model(own: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "told.yaml").write_text(yaml.safe_dump(BASE))
    path = tmp_path / "wide.yaml"
    path.write_text(yaml.safe_dump({"extends": "told.yaml", "name": "wide", "model": {"d_model": 64}} | own))
    _, model = docstrings(path)
    assert model.splitlines()[0] == ("wide: Another." if own else "wide.") and "Somebody" not in model


def test_a_resolved_spec_says_the_same(tmp_path: Path) -> None:
    first = load(BASE, Reporter())
    assert first is not None
    (tmp_path / "again.yaml").write_text(resolved_text(first))
    second = load(tmp_path / "again.yaml", Reporter())
    assert second is not None and (second.title, second.source) == (BASE["title"], BASE["source"])
