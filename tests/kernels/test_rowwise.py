"""Norms, gated products and scans of packages for a GPU: which they are, and that packages mean the same."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archc.kernels.rowwise import glu_kernels, norm_kernels, rowwise_kernels, scan_kernels
from archc.pipeline import build, graph_of, sources_of
from tests.laws.subjects import LIBRARY, SHRUNK, one_mixer
from tests.support.packages import import_folder, package, randomise
from tests.support.slow import mostly_slow

TARGETS = [pytest.param(name, marks=pytest.mark.slow) for name in ("h100", "a100")]
TARGETS.append(pytest.param("mi300x", marks=pytest.mark.library))

X = "linear(x, [n_heads, head_dim])"


def own(**body: str) -> dict[str, Any]:
    """A model whose mixer has these equations."""
    spec = dict(one_mixer("own", {"use": "own"}))
    params = {"n_heads": {"type": "int", "default": 2}, "head_dim": {"type": "int", "default": 12}}
    spec["mixers"] = {"own": {"params": params, "body": body}}
    return spec


def forward(spec: Any, target: str = "h100") -> list[str]:
    """The statements of the first class, the mixer's, without its arguments' lines."""
    text = sources_of(spec, target)["model.py"]
    start = text.index("    def forward(")
    lines = text[start : text.index("        return y_", start)].splitlines()[1:]
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (
            {"o": X, "gate": X, "y": "linear(rmsnorm(o) * gate, d_model)"},
            ["self.y_norm(o_BTHK, gate=gate_BTHK)"],
        ),
        (
            {"o": X, "z": X, "y": "linear(silu(z) * rmsnorm(o, weight=none, eps=0.5), d_model)"},
            ['rmsnorm(o_BTHK, eps=0.5, gate=z_BTHK, activation="silu")'],
        ),
        (
            {"o": X, "z": X, "gated": "o * silu(z)", "y": "linear(rmsnorm(gated), d_model)"},
            ['gated(z_BTHK, o_BTHK, "silu")', "self.y_norm(gated_BTHK)"],
        ),
        (  # of two norms the first has the second as its gate
            {"o": X, "y": "linear(rmsnorm(o, name=a) * rmsnorm(o, name=b), d_model)"},
            ["self.a(o_BTHK, gate=self.b(o_BTHK))"],
        ),
        ({"o": X, "y": "linear(gelu(o) * o, d_model)"}, ['gated(o_BTHK, o_BTHK, "gelu")']),
    ],
)
def test_products(body: Mapping[str, str], lines: list[str]) -> None:
    text = "".join(forward(own(**body)))
    for line in lines:
        assert line in text, text
    assert "gated(" not in "".join(forward(own(**body), "cpu"))


@pytest.mark.parametrize(
    "body",
    [
        {"o": X, "a": "silu(o)", "y": "linear(a * o + a, d_model)"},  # read twice
        {"o": X, "y": "linear(tanh(o) * o, d_model)"},  # no kernel for it
        {"o": X, "g": "linear(x, [n_heads])", "y": "linear(silu(g) * o, d_model)"},  # another shape
        {"o": X, "y": "linear(silu(o) * 2, d_model)"},
        {"o": X, "y": "linear(exp(silu(o) * o), d_model)"},  # what reads it is elementwise, too
        {"o": X, "n": "rmsnorm(o)", "y": "linear(n * o + n, d_model)"},
        {"o": X, "a": "silu(o)", "y": "linear(a * o, d_model)"},
    ],
)
def test_no_products(body: dict[str, str]) -> None:
    text = "".join(forward(own(**body)))
    if body["y"] == "linear(a * o, d_model)":  # the equation is there for who looks at it
        assert "gated(" in text and "if place.patterns:a_BTHK = F.silu(o_BTHK)place.keep_all" in text
    else:
        assert "gated(" not in text and "gate=" not in text


def test_equations_inside_are_there_to_look_at() -> None:
    """A gate that is an equation is computed where it is captured; what it is made of gets a name."""
    found = forward(LIBRARY["gated_deltanet"])
    at = found.index("if place.patterns:")
    assert found[at + 1 : at + 3] == ["gate_BTWV = F.silu(gate_linear_BTWV)", "place.keep_all(locals())"]
    assert not any("gate_BTWV" in line for line in found[:at])
    assert 'gate=gate_linear_BTWV, activation="silu")' in "".join(found)


def imported(text: str, file: str) -> list[str]:
    """The names that a module imports from a file of its package."""
    for line in text.splitlines():
        if line.startswith(f"from .{file} import "):
            return line.removeprefix(f"from .{file} import ").split(", ")
    return []


def test_files() -> None:
    """Kernels are in packages for a GPU only; what has none stays the plain function."""
    spec = one_mixer("scanned", {"use": "hgrn"})
    files, plain = sources_of(spec, "h100"), sources_of(spec)
    new = {"fused_norms", "norm_kernels", "fused_glu", "glu_kernels", "fused_scan", "scan_kernels"}
    assert {f"{name}.py" for name in new} <= set(files) - set(plain)
    model = files["model.py"]
    assert imported(model, "fused_norms") == ["RMSNorm"] and imported(model, "norm_modules") == []
    assert imported(model, "fused_scan") == ["scan"] and imported(model, "scan") == []
    assert "complex_scan" in imported(sources_of(LIBRARY["lru"], "h100")["model.py"], "scan")
    for name, text in files.items():
        assert ("import triton" in text) == name.endswith("_kernels.py"), name
        assert not any(line.startswith("from .") and "_kernels" in line for line in text.splitlines()), name


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Logits of whole sequences, pieces with a state, packed rows; what is captured; gradients."""
    tokens = torch.randint(64, (2, 23), generator=torch.Generator().manual_seed(5))
    logits = model(tokens)
    found = {"logits": logits}
    logits.square().mean().backward()
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        state = model.init_state(batch_size=2, max_length=32)
        pieces = [model(piece, state=state) for piece in tokens.split([2, 1, 12, 8], 1)]
        found["pieces"] = torch.cat(pieces, 1)
        found |= {f"state {name}": value for name, value in state.tensors().items()}
        row = tokens.reshape(1, -1)
        found["packed"] = model(row, cu_seqlens=torch.tensor([0, 5, 5, 6, 46]))
        found |= model(tokens, capture=["layers.0.*"])[1]
    return found


SUBJECTS = {
    "gated_deltanet_small": SHRUNK["gated_deltanet_small"],
    "attention_small": SHRUNK["attention_small"],
    "hgrn": one_mixer("hgrn_model", {"use": "hgrn"}),
    "mamba2": LIBRARY["mamba2"],
    "fox": LIBRARY["fox"],
}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", mostly_slow(SUBJECTS, lambda name: name in ("attention_small", "fox")))
def test_packages_mean_the_same(name: str, tmp_path: Path) -> None:
    """On a CPU a package for a GPU gives the logits, gradients, states and captured values of one for a CPU."""
    build(SUBJECTS[name], tmp_path / "mine", target="h100")
    mine = import_folder(tmp_path / "mine", f"gpu_rowwise_{name}").Model()
    theirs = package(SUBJECTS[name]).Model()
    randomise(theirs)
    mine.load_state_dict(theirs.state_dict())
    got, want = everything(mine), everything(theirs)
    assert got.keys() >= want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, msg=lambda text: f"{key}: {text}")  # noqa: B023


def launched(name: str) -> ModuleType:
    """The kernels' own file, which sees Triton."""
    pytest.importorskip("triton")
    return importlib.import_module(f"archc.operations.{name}.kernels")


def test_kernels_of_a_model() -> None:
    """Each once: the norms of the stack and of the heads, the MLP's product."""
    found = rowwise_kernels(graph_of(Path("specs/models/gdn_hybrid_340m.yaml")))
    facts = [(k.name, k.constants["WIDTH"], k.constants["ACTIVATION"]) for k in found]
    assert facts == [
        ("rmsnorm_kernel", 1024, "none"),
        ("rmsnorm_backward_kernel", 1024, "none"),
        ("rmsnorm_kernel", 256, "silu"),
        ("rmsnorm_backward_kernel", 256, "silu"),
        ("glu_kernel", 2752, "silu"),
        ("glu_backward_kernel", 2752, "silu"),
    ]
    names = [k.name for k in rowwise_kernels(graph_of(one_mixer("scanned", {"use": "hgrn"})))]
    assert names.count("scan_kernel") == names.count("scan_backward_kernel") == 2


@pytest.mark.parametrize("width", [1, 24, 128, 2048, 3000, 16384])
def test_described_as_launched(width: int) -> None:
    """What is compiled ahead of time has the arguments, tiles and warps of the launch."""
    norms, glu, scan = launched("norms"), launched("elementwise"), launched("scan")
    for kernel in norm_kernels(width):
        constants = kernel.constants
        assert (constants["BLOCK_T"], constants["BLOCK_W"], kernel.num_warps) == norms._tile(width)
        assert {*kernel.signature, *constants} == set(getattr(norms, kernel.name).arg_names)
    for kernel in glu_kernels(width):
        constants = kernel.constants
        assert (constants["BLOCK_R"], constants["BLOCK_W"]) == glu._tile(1, width)[:2]
        assert kernel.num_warps == glu.WARPS
        assert {*kernel.signature, *constants} == set(getattr(glu, kernel.name).arg_names)
    for kernel in scan_kernels(width):
        constants = kernel.constants
        assert (constants["BLOCK_T"], constants["BLOCK_C"]) == (scan.BLOCK_T, scan.BLOCK_C)
        assert kernel.num_warps == scan.WARPS
        assert {*kernel.signature, *constants} == set(getattr(scan, kernel.name).arg_names)


def test_rows_that_do_not_fit() -> None:
    """The package falls back on the torch form where nothing is compiled."""
    assert norm_kernels(16384) and not norm_kernels(16385)
    assert norm_kernels(8192, activation="silu") and not norm_kernels(8193, activation="none")
    text = sources_of(SUBJECTS["hgrn"], "h100")["fused_norms.py"]
    assert "WIDEST, WIDEST_GATED = 16384, 8192" in text


@pytest.mark.parametrize("target", TARGETS)
def test_they_fit(target: str) -> None:
    """Nothing spills."""
    from archc.kernels.compile import verify
    from archc.kernels.targets import load_target

    pytest.importorskip("triton")
    gpu = load_target(target)
    warp = gpu.warp_size
    kernels = [
        *norm_kernels(128, activation="silu", warp_size=warp),
        *norm_kernels(128, 16, warp_size=warp),
        *norm_kernels(4096, warp_size=warp),
        *norm_kernels(8192, activation="silu", warp_size=warp),
        *glu_kernels(2816, warp_size=warp),
        *glu_kernels(2816, "gelu", warp_size=warp),
        *scan_kernels(2048, warp_size=warp),
        *scan_kernels(2048, 64, warp_size=warp),
    ]
    for fit in verify(kernels, gpu):
        assert fit.fits and fit.found is not None, f"{fit.name}: {fit.verdict}"
        assert fit.found.spills == fit.found.stack == 0, fit.name
