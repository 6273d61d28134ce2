"""The JSON Schemas accept every file that ships and refuse what archc refuses by form."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import BLOCKS, MODEL

from archc.spec.diagnostics import Reporter
from archc.spec.schema import KINDS, generate
from archc.spec.yaml_nodes import YMapping, YNode, YSequence, core_value
from archc.spec.yaml_reader import parse
from tests.support.slow import mostly_slow

ROOT = Path(__file__).resolve().parents[2]
FILES = [(kind, path) for kind in KINDS for path in sorted((ROOT / "specs" / f"{kind}s").glob("*.yaml"))]


def plain(node: YNode) -> Any:
    """Nodes as the data that a YAML 1.2 reader gives an editor."""
    if isinstance(node, YMapping):
        return {key.text: plain(value) for key, value in node.entries}
    if isinstance(node, YSequence):
        return [plain(item) for item in node.items]
    value = core_value(node)
    return (int(value) if value.denominator == 1 else float(value)) if isinstance(value, Fraction) else value


def data_of(text: str) -> Any:
    report = Reporter()
    node = parse(text, "<text>", report)
    assert node is not None and not report.diagnostics
    return plain(node)


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_schemas(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(generate(kind))


@pytest.mark.parametrize(("kind", "path"), mostly_slow(FILES, 11), ids=[path.stem for _, path in FILES])
def test_files_that_ship_are_valid(kind: str, path: Path) -> None:
    jsonschema.validate(data_of(path.read_text(encoding="utf-8")), generate(kind))


def test_there_are_files_to_check() -> None:
    assert {kind for kind, _ in FILES} == set(KINDS)


@pytest.mark.parametrize(
    "layers",
    [
        "[3 a, b]",
        "3:1",
        "{ratio: 3:1, blocks: [a, b]}",
        "{default: a, b: [1, 2-5]}",
        "{pattern: ab, letters: {a: a, b: b}}",
    ],
)
def test_models_are_valid(layers: str) -> None:
    jsonschema.validate(data_of(MODEL + BLOCKS + f"layers: {layers}\n"), generate("model"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n_layers", "n_layer"),
        ("mixers:", "mixer:"),
        ("    sizes:", "    size:"),
        ("min: 1", "minimum: 1"),
        ("type: int", "type: integer"),
        ("      o: v", "      o-o: v"),
        ("n_layers: 8", "n_layers: 0"),
        ("layers: [a]", "layers: {ratio: 3:1, block: [a]}"),
    ],
)
def test_wrong_forms_are_refused(old: str, new: str) -> None:
    text = MODEL + BLOCKS + "layers: [a]\n"
    assert old in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data_of(text.replace(old, new)), generate("model"))


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(KeyError):
        generate("optimizer")
