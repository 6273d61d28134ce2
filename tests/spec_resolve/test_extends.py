"""`extends:`: what is merged, what is replaced whole, and which file an error points to."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from helpers import BLOCKS, MODEL, content, spec_of

from archc.spec.diagnostics import Diagnostic, Reporter
from archc.spec.resolve import load
from archc.spec.spec import Use


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(MODEL + BLOCKS + "layers: [3 a, 1 b]\n")
    return tmp_path


def derived(text: str, folder: Path) -> list[Diagnostic]:
    path = folder / "derived.yaml"
    path.write_text("extends: base.yaml\n" + text)
    report = Reporter()
    load(path, report)
    return report.diagnostics


def test_nothing_changed_is_the_same_spec(base: Path) -> None:
    assert content(spec_of("extends: base.yaml\n", base)) == content(
        spec_of(MODEL + BLOCKS + "layers: [3 a, 1 b]\n")
    )


def test_values_are_merged_by_key(base: Path) -> None:
    spec = spec_of(
        "extends: base.yaml\nmodel: {n_layers: 4}\nblocks: {b: {mlp: {expansion: 3}}}\nlayers: [a, b]\n", base
    )
    assert spec.settings.n_layers == 4 and spec.settings.d_model == 64
    assert "".join(spec.layers.names) == "abab"
    use = spec.blocks["b"].slots["mlp"]
    assert isinstance(use, Use) and use.arguments["expansion"] == Fraction(3)


def test_another_body_takes_none_of_the_old_arguments(base: Path) -> None:
    text = "extends: base.yaml\nmixers:\n  other:\n    body:\n      y: linear(x, d_model)\n"
    text += "blocks: {b: {mixer: {use: other}}}\n"
    use = spec_of(text, base).blocks["b"].slots["mixer"]
    assert isinstance(use, Use) and use.arguments == {}


def test_null_removes(base: Path) -> None:
    spec = spec_of("extends: base.yaml\nblocks: {b: null}\nlayers: [a]\n", base)
    assert list(spec.blocks) == ["a"]
    use = (
        spec_of("extends: base.yaml\nblocks: {b: {mixer: {n_heads: null}}}\n", base)
        .blocks["b"]
        .slots["mixer"]
    )
    assert isinstance(use, Use) and use.given == set()


def test_equations_are_merged_by_name(base: Path) -> None:
    spec = spec_of("extends: base.yaml\nmixers:\n  mix:\n    body:\n      o: v * tanh(g)\n", base)
    use = spec.blocks["a"].slots["mixer"]
    assert isinstance(use, Use) and [e.text for e in use.body.equations][1] == "v * tanh(g)"


def test_errors_point_to_the_file_that_is_at_fault(base: Path) -> None:
    (found,) = derived("blocks: {b: {mlp: {expansion: wide}}}\n", base)
    assert Path(found.span.path).name == "derived.yaml"
    (base / "base.yaml").write_text(
        (MODEL + BLOCKS).replace("n_heads: 2", "n_head: 2") + "layers: [3 a, 1 b]\n"
    )
    (found,) = derived("", base)
    assert found.code == "E220" and Path(found.span.path).name == "base.yaml"


def test_bodies_beside_the_extended_spec_are_found(base: Path) -> None:
    (base / "lib" / "mixers").mkdir(parents=True)
    (base / "lib" / "mixers" / "near.yaml").write_text("mixer: near\nbody:\n  y: linear(x, d_model)\n")
    (base / "lib" / "base.yaml").write_text(MODEL + "blocks:\n  a: {mixer: {use: near}}\n")
    assert spec_of("extends: lib/base.yaml\n", base).blocks["a"].slots


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "nowhere.yaml", "a\\0b.yaml", "base.txt"])
def test_only_specs_are_extended(base: Path, target: str) -> None:
    (base / "base.txt").write_text("archc: 1\n")
    report = Reporter()
    path = base / "derived.yaml"
    path.write_text(f'extends: "{target}"\n')
    assert load(path, report) is None
    assert {each.code for each in report.diagnostics} <= {"E260", "E100", "E103"}
