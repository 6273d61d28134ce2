"""Titles, sources and help of a spec: whatever they say, they stay text in the package."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from archc.pipeline import sources_of

TEXTS = {
    "quotes": 'ends """ here',
    "code": 'a """\nimport os\nraise SystemExit(3)\n"""',
    "backslashes": "a \\d and \\u12 and \\",
    "lines": "one\n\n    two\nx = 1",
    "a quote at the end": 'he said "so"',
}


def spec(text: str) -> dict[str, Any]:
    body = {"y": "linear(x, d_model) * strength * twice"}
    params = {
        "strength": {"type": "number", "default": 2, "help": text},
        "twice": {"type": "number", "default": "2 * strength", "help": text},
    }
    return {
        "archc": 1,
        "name": "told",
        "title": text,
        "source": text,
        "model": {"vocab_size": 32, "d_model": 32, "n_layers": 1, "context": 64, "norm": "rmsnorm"},
        "mixers": {"plain": {"title": text, "source": text, "params": params, "body": body}},
        "blocks": {"main": {"mixer": {"use": "plain"}, "mlp": {"use": "swiglu", "d_ff": 32}}},
    }


def shape(source: str) -> str:
    """A module without its docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_it_stays_text(text: str) -> None:
    plain, found = sources_of(spec("plain")), sources_of(spec(text))
    assert set(found) == set(plain)
    for path in ("__init__.py", "config.py", "model.py"):
        assert shape(found[path]) == shape(plain[path]), path
    assert f"# {' '.join(text.split())}\n" in found["config.py"]
    classes = [node for node in ast.parse(found["model.py"]).body if isinstance(node, ast.ClassDef)]
    said = next(ast.get_docstring(node) or "" for node in classes if node.name == "Plain")
    assert said.startswith(f"{' '.join(text.split())}.\n\n{' '.join(text.split())}\n")
