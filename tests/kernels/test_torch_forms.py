"""What has no kernels on a target is said, when it is built and by `archc kernels`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from archc.cli.app import app
from archc.kernels.targets import load_target
from archc.kernels.torch_forms import torch_forms
from archc.pipeline import graph_of

SPEC = {
    "archc": 1,
    "name": "tiny",
    "model": {"vocab_size": 32, "d_model": 32, "n_layers": 1, "context": 64, "norm": "rmsnorm"},
    "layers": ["1 main"],
}


def spec(**sizes: object) -> dict[str, object]:
    """A model of one recurrence with a decay per head."""
    mixer = {"use": "gated_deltanet", "n_heads": 2, "head_dim": 16, "expand_v": 1} | sizes
    return SPEC | {"blocks": {"main": {"mixer": mixer, "mlp": {"use": "swiglu", "d_ff": 32}}}}


def test_heads_whose_rows_do_not_align() -> None:
    target = load_target("h100")
    (line,) = torch_forms(graph_of(spec(head_dim=20)), target)
    assert line.startswith("head_decay_delta, K 20, V 20: torch form but for single tokens: rows of K and V")


def test_gradients_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, target = graph_of(spec()), load_target("h100")
    monkeypatch.setattr("archc.kernels.torch_forms.has_reverse", lambda *_: True)
    assert torch_forms(graph, target) == ()
    monkeypatch.setattr("archc.kernels.torch_forms.has_reverse", lambda *_: False)
    (line,) = torch_forms(graph, target)
    assert line.startswith("head_decay_delta: gradients in the torch form") and target.title in line


@pytest.mark.usefixtures("uncompiled")
def test_the_build_says_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec(head_dim=20)))

    def build(target: str) -> str:
        options = ["--target", target, "--out", str(tmp_path / target)]
        return CliRunner().invoke(app, ["build", str(path), *options]).output

    assert "torch form but for single tokens" in build("h100")
    assert "torch form" not in build("cpu")
