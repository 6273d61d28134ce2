"""Gated gradients that old versions of Triton compile wrongly for Hopper run in the torch form, which is said."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from archc.codegen.package import runtime_path
from archc.kernels.recurrence import gradients_since
from archc.kernels.targets import load_target, target_names
from archc.kernels.torch_forms import torch_forms
from archc.pipeline import build, graph_of, sources_of
from archc.tiles.kind import DECAYS, RecurrenceKind
from tests.support.imports import imported

pytest.importorskip("triton")

NONE = {"use": "swiglu", "d_ff": 32}
MIXERS: dict[str, dict[str, Any]] = {
    "head_decay_delta": {"use": "gated_deltanet", "n_heads": 2, "head_dim": 16, "expand_v": 1},
    "head_decay_normalized_max_log_input": {"use": "mlstm_7b", "n_heads": 1, "expand_k": 1, "expand_v": 2},
    "delta": {"use": "delta_net", "n_heads": 2},
}
OLD, NEW = "3.7.0", "3.7.1"


def spec(name: str) -> dict[str, Any]:
    return {
        "archc": 1,
        "name": f"gradients_of_{name}",
        "model": {"vocab_size": 32, "d_model": 64, "n_layers": 1, "context": 64, "norm": "rmsnorm"},
        "blocks": {"main": {"mixer": MIXERS[name], "mlp": NONE}},
        "layers": ["1 main"],
    }


def test_which_classes_and_targets() -> None:
    since = {
        name: gradients_since(RecurrenceKind(decay="head"), load_target(name)) for name in target_names()
    }
    assert {name for name, found in since.items() if found} == {"h100", "h200"}
    assert since["h100"] == (3, 7, 1)
    guarded = {each for each in DECAYS if gradients_since(RecurrenceKind(decay=each), load_target("h100"))}
    assert guarded == {"constant", "head", "key", "value"}  # the walk over tokens has no matrix products
    with_maximum = RecurrenceKind(normalize="max", log_input=True)
    assert gradients_since(with_maximum, load_target("h100"))  # the maximum decays


def test_where_nothing_is_known_to_be_wrong() -> None:
    assert "triton_versions.py" in sources_of(spec("head_decay_delta"), "h100")
    for name, target in (("head_decay_delta", "cpu"), ("head_decay_delta", "b200"), ("delta", "h100")):
        assert "triton_versions.py" not in sources_of(spec(name), target), (name, target)


@pytest.fixture
def package(
    request: pytest.FixtureRequest, uncompiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ModuleType, ModuleType]:
    """A class of recurrence and its kernels, as on a GPU where the forward ran in kernels."""
    name = request.param
    build(spec(name), tmp_path / f"gradients_of_{name}", target="h100")
    module = imported(f"gradients_of_{name}.{name}", tmp_path)
    kernels = imported(f"gradients_of_{name}.{name}_kernels")
    monkeypatch.setattr(module, "_has_kernels", lambda q, v: True)

    def wrong(*given: Any) -> tuple[Tensor, ...]:
        raise AssertionError("the kernels were taken")

    for each in ("chunk_backward", "normalized_backward"):
        monkeypatch.setattr(kernels, each, wrong, raising=False)
    return module, kernels


def use(kernels: ModuleType, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "triton", SimpleNamespace(__version__=version))


def delta_rule() -> tuple[list[Tensor], Tensor]:
    """q, k, v, decay, beta of two sequences of 80 tokens, and a state."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 80, 2, 16, generator=draw) for _ in range(3))
    decay, beta = -torch.rand(2, 80, 2, generator=draw), torch.rand(2, 80, 2, generator=draw)
    return [q, k / k.norm(dim=-1, keepdim=True), v, decay, beta], torch.randn(2, 2, 16, 16, generator=draw)


@pytest.mark.parametrize("package", ["head_decay_delta"], indirect=True)
def test_an_old_triton_takes_the_torch_form(
    package: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, kernels = package
    tensors, state = delta_rule()
    do, dfinal = torch.randn(2, 80, 2, 16), torch.randn(2, 2, 16, 16)
    _, _, *kept = module.chunk_forward(*tensors, state, None, 0.25)
    want = module.chunk_backward(do, dfinal, *tensors, None, *kept, 0.25)
    # What kernels keep: the states that spans start with, then U and X in a layout that the torch form cannot read.
    nothing = torch.full((2, 80, 2, 16), torch.nan)
    given = (do, dfinal, *tensors, None, state, nothing, nothing, 0.25)
    use(kernels, NEW, monkeypatch)
    with pytest.raises(AssertionError, match="the kernels were taken"):
        module._chunk_reverse_on_gpu(*given)
    module.wrong_gradients.cache_clear()
    use(kernels, OLD, monkeypatch)
    with pytest.warns(UserWarning, match=r"Triton 3\.7\.0 has compiled such kernels wrongly") as said:
        got = module._chunk_reverse_on_gpu(*given)
    assert "head_decay_delta_kernels" in str(said[0].message) and "3.7.1 and later" in str(said[0].message)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        module._chunk_reverse_on_gpu(*given)


@pytest.mark.parametrize("package", ["head_decay_normalized_max_log_input"], indirect=True)
def test_so_does_a_normaliser(
    package: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, kernels = package
    monkeypatch.setattr(module, "normalized_backward", lambda *given: given)
    use(kernels, OLD, monkeypatch)
    with pytest.warns(UserWarning, match="normalized"):
        assert module._normalized_reverse_on_gpu(*(torch.zeros(1) for _ in range(6)))


@pytest.mark.parametrize("package", ["head_decay_delta"], indirect=True)
@pytest.mark.parametrize(("version", "ran"), [(OLD, "torch form"), (NEW, "kernel")])
@pytest.mark.filterwarnings("ignore:gradients of")
def test_a_report_says_what_gradients_ran_in(
    package: tuple[ModuleType, ModuleType], version: str, ran: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, kernels = package
    selftest = imported(f"{module.__package__}.selftest")
    use(kernels, version, monkeypatch)
    assert selftest.gradients_run_in(module, "kernel") == ran
    assert selftest.gradients_run_in(module, "torch form") == "torch form"
    monkeypatch.setattr(module, "GRADIENT_KERNELS", False)
    assert selftest.gradients_run_in(module, "kernel") == "torch form"


@pytest.mark.parametrize(
    ("version", "wrong"),
    [
        ("3.4.0", True),
        ("3.6.0", True),
        ("3.7.1", False),
        ("3.7.1+git0a1b", False),
        ("3.10.0", False),
        ("4.0", False),
    ],
)
@pytest.mark.filterwarnings("ignore:gradients of")
def test_versions(version: str, wrong: bool) -> None:
    found = importlib.util.spec_from_file_location("triton_versions", runtime_path("triton_versions"))
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    kernels = ModuleType("kernels")
    kernels.triton = SimpleNamespace(__version__=version)  # type: ignore[attr-defined]
    assert module.wrong_gradients(kernels, (3, 7, 1)) is wrong


def test_the_build_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, target = graph_of(spec("head_decay_delta")), load_target("h100")
    monkeypatch.setattr("archc.kernels.torch_forms.triton_version", lambda: OLD)
    (line,) = torch_forms(graph, target)
    assert "gradients in the torch form where Triton is 3.7.0" in line and "from 3.7.1 on" in line
    assert torch_forms(graph_of(spec("delta")), target) == torch_forms(graph, load_target("b200")) == ()
    for version in (NEW, None):
        monkeypatch.setattr("archc.kernels.torch_forms.triton_version", lambda found=version: found)
        assert torch_forms(graph, target) == ()
