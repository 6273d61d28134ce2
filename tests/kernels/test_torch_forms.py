"""What has no kernels on a target is said: when it is built, by `archc kernels`, and once when it runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner

from archc.cli.app import app
from archc.codegen.package import runtime_path
from archc.kernels.targets import load_target
from archc.kernels.torch_forms import torch_forms
from archc.pipeline import graph_of, sources_of
from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from tests.support.imports import imported

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


@pytest.fixture
def emitted(tmp_path: Path) -> Callable[..., ModuleType]:
    """The module of a class with kernels for heads of 16 x 16, or for none."""

    def load(name: str, kind: RecurrenceKind, *sizes: tuple[int, int]) -> ModuleType:
        folder = tmp_path / f"said_of_{name}"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / f"{name}.py").write_text(emit(kind, name, kernel_sizes=sizes))
        for file in ("place", "tiling", "torch_form"):
            (folder / f"{file}.py").write_text(runtime_path(file).read_text())
        return imported(f"{folder.name}.{name}", tmp_path)

    return load


def heads(K: int, V: int) -> list[Tensor]:
    """q, k, v of 20 tokens."""
    return [torch.randn(1, 20, 2, width) for width in (K, K, V)]


def once(message: str, run: Callable[[], Any]) -> list[Any]:
    """The results of two runs, of which the first one says this."""
    with pytest.warns(UserWarning, match=message):
        first = run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [first, run()]


def test_other_sizes_are_said_once_where_they_run(emitted: Callable[..., ModuleType]) -> None:
    """What torch runs for tensors on a GPU is called here by itself; on a CPU nothing is said."""
    module = emitted("plain", RecurrenceKind(), (16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        want = module.chunk(*heads(16, 24), None, None, 1.0)
        module._chunk_on_gpu(*(x.double() for x in heads(16, 16)), None, None, 1.0)  # has none in any package
    given = (*heads(16, 24), None, None, 1.0)
    said = r"said_of_plain.plain runs in the torch form.* 16 x 24: its kernels were made for 16 x 16\. Build"
    for got in once(said, lambda: module._chunk_on_gpu(*given)):
        assert [x.shape for x in got] == [x.shape for x in want]
    once("heads of 8 x 8", lambda: module._chunk_on_gpu(*heads(8, 8), None, None, 1.0))  # another cause


@pytest.mark.parametrize("normalize", ["none", "sum"])
def test_a_class_without_kernels_says_so(normalize: Any, emitted: Callable[..., ModuleType]) -> None:
    """The column of a normaliser is no column of a head."""
    module = emitted(f"no_kernels_{normalize}", RecurrenceKind(normalize=normalize))
    given = (*heads(16, 24 + (normalize != "none")), None, None, 1.0)
    once("heads of 16 x 24: its kernels were made for single tokens", lambda: module._chunk_on_gpu(*given))


def test_so_do_gradients_without_kernels(
    emitted: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = emitted("forward_only", RecurrenceKind(), (16, 16))
    monkeypatch.setattr(module, "_has_kernels", lambda q, v: True)
    q, k, v = heads(16, 16)
    start = torch.zeros(1, 2, 16, 16)
    once("gradients of said_of_forward_only.forward_only run in the torch form",
         lambda: module._chunk_reverse_on_gpu(v, start, q, k, v, None, start, 1.0))  # fmt: skip
    module = emitted("divided", RecurrenceKind(normalize="sum"), (16, 16))
    monkeypatch.setattr(module, "_has_kernels", lambda q, v: True)
    monkeypatch.setattr(module, "normalized_backward", lambda *given: given)
    once("gradients of said_of_divided.divided", lambda: module._normalized_reverse_on_gpu(*range(9)))


def test_packages_for_a_cpu_have_nothing_to_say() -> None:
    assert "torch_form.py" in sources_of(spec(), "h100")
    assert "torch_form.py" not in sources_of(spec(), "cpu")
