"""Operations of a user's own project: found through archc.toml, carried into packages, their failures named."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from archc.operations.registry import operations
from archc.pipeline import build, check

DEFINITION = '''
"""ramp: a leaky ramp."""
from archc.printing.printer import call
from archc.graph.types import ValueType
from archc.operations.base import Operation, Signature


class Ramp(Operation):
    """max(x, slope * x)."""

    name = "ramp"
    title = "a leaky ramp"
    signature = Signature.parse("x, slope: static")

    def build(self, call):
        x = call.value("x")
        return call.add([x], ValueType(x.type.axes), {"slope": call.static("slope")})

    def emit(self, node, inputs, printer):
        printer.use("ramp", "ramp")
        return call("ramp", inputs[0], printer.number(node.attrs["slope"]))


OPERATIONS = (Ramp(),)
'''
RUNTIME = '''"""A leaky ramp."""

from __future__ import annotations

import torch
from torch import Tensor


def ramp(x: Tensor, slope: float) -> Tensor:
    """`max(x, slope * x)`."""
    return torch.maximum(x, slope * x)
'''
SPEC = """\
archc: 1
name: ramps
model: {vocab_size: 64, d_model: 32, n_layers: 1, context: 64}
mixers:
  mine:
    body:
      r: ramp(linear(x, d_model), 0.25)
      y: linear(r, d_model)
blocks:
  main: {mixer: {use: mine}}
layers: [1 main]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one operation of its own and a spec that uses it."""
    folder = tmp_path / "operations" / "ramp"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(DEFINITION)
    (folder / "runtime.py").write_text(RUNTIME)
    (tmp_path / "archc.toml").write_text('[operations]\nfolders = ["operations"]\n')
    (tmp_path / "ramps.yaml").write_text(SPEC)
    return tmp_path


def test_it_runs_and_its_source_is_carried_along(project: Path) -> None:
    build(project / "ramps.yaml", project / "out" / "ramps")
    assert (project / "out" / "ramps" / "ramp.py").read_text().count("torch.maximum") == 1
    path = project / "out" / "ramps" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "ramps", path, submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ramps"] = module
    spec.loader.exec_module(module)
    model = module.Model()
    _, seen = model(torch.randint(0, 64, (1, 9)), capture=["*.mixer.r"])
    assert (seen["layers.0.mixer.r"] < 0).any()
    with torch.no_grad():
        model.layers[0].mixer.r.weight.fill_(0)
    _, seen = model(torch.randint(0, 64, (1, 9)), capture=["*.mixer.r"])
    assert torch.equal(seen["layers.0.mixer.r"], torch.zeros(1, 9, 32))


def test_other_projects_do_not_see_it(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert check(project / "ramps.yaml") == []
    assert "ramp" in operations()
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "ramps.yaml"
    elsewhere.write_text(SPEC)
    assert [found.code for found in check(elsewhere)] == ["E305"]
    assert "ramp" not in operations()


def test_a_failure_while_reading_names_the_line_of_its_code(project: Path) -> None:
    path = project / "operations" / "ramp" / "__init__.py"
    path.write_text(DEFINITION.replace('call.value("x")', 'call.value("x") / 2'))
    (found,) = check(project / "ramps.yaml")
    line = path.read_text().split("\n").index('        x = call.value("x") / 2') + 1
    assert found.code == "E391" and found.span.line == 7
    assert f"{path}:{line}" in found.note and "TypeError" in found.note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: (p / "archc.toml").write_text('[operations]\nfolders = "operations"\n'), "folders"),
        (lambda p: (p / "archc.toml").write_text('[operations]\nfolders = ["missing"]\n'), "missing"),
        (lambda p: (p / "operations/ramp/__init__.py").write_text("1 / 0\n"), "cannot be loaded"),
        (lambda p: (p / "operations/ramp/__init__.py").write_text("x = 1\n"), "cannot be loaded"),
        (
            lambda p: (p / "operations/ramp/__init__.py").write_text(
                DEFINITION.replace('"ramp"', '"linear"')
            ),
            "`linear` already",
        ),
    ],
)
def test_an_operation_that_cannot_be_loaded(project: Path, change: object, words: str) -> None:
    assert callable(change)
    change(project)
    found = check(project / "ramps.yaml")
    assert found[0].code == "E390" and words in found[0].message
    assert found[0].span.path.endswith("archc.toml")
