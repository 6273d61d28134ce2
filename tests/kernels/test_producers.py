"""Convolutions, activations and norms that one launch computes: which they are, and that packages mean the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archc.graph.reach import reached
from archc.graph.types import Module
from archc.kernels.conv import conv_kernels
from archc.kernels.fusing.producers import Chain, conv_groups
from archc.pipeline import build, graph_of, sources_of
from tests.laws.subjects import LIBRARY, one_mixer
from tests.support.imports import imported
from tests.support.packages import import_folder, package, randomise
from tests.support.slow import mostly_slow

pytestmark = pytest.mark.usefixtures("uncompiled")

CONVOLVED = [
    name for name, spec in LIBRARY.items() if "conv" in (Path("specs/mixers") / f"{name}.yaml").read_text()
]


def own(**body: str) -> dict[str, Any]:
    """A model whose mixer has these equations."""
    spec = dict(one_mixer("own", {"use": "own"}))
    params = {"n_heads": {"type": "int", "default": 2}, "head_dim": {"type": "int", "default": 12}}
    spec["mixers"] = {"own": {"params": params, "body": body}}
    return spec


def groups(spec: Any) -> list[list[str]]:
    """The groups of the mixers of a model, each chain as its member's name and what follows it."""
    found = []
    for module in graph_of(spec).modules.values():
        found += [[_text(chain) for chain in group] for group in _groups(module)]
    return found


def _groups(module: Module) -> list[tuple[Chain, ...]]:
    return conv_groups(module.subgraph, reached(module.subgraph, [module.subgraph.output]))


def _text(chain: Chain) -> str:
    steps = [step for step in (chain.activation, chain.norm) if step != "none"]
    return " ".join([chain.conv.name, *steps])


def lines(spec: Any, target: str = "h100") -> list[str]:
    """The lines of `model.py` that call the function."""
    text = sources_of(spec, target)["model.py"]
    return [line.strip() for line in text.splitlines() if "conv_act_norm(" in line]


def test_side_by_side() -> None:
    assert groups(LIBRARY["gated_deltanet"]) == [["q_conv silu l2norm", "k_conv silu l2norm", "v_conv silu"]]


X = "linear(x, [n_heads, head_dim])"


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ("conv1d(4) | silu | l2norm", "a_conv silu l2norm"),
        ("conv1d(4) | relu", "a_conv relu"),
        ("conv1d(4) | gelu | rmsnorm(weight=none)", "a_conv gelu rmsnorm"),
        ("conv1d(4) | l2norm", "a_conv l2norm"),
        ("conv1d(4)", "a_conv"),
        ("conv1d(4) | tanh | l2norm", "a_conv"),  # of an activation without a kernel nothing is taken
        ("conv1d(4) | silu | rmsnorm", "a_conv silu"),  # a norm with a weight is its own
        ("conv1d(4) | silu | l2norm(over=[n_heads, head_dim])", "a_conv silu"),
    ],
)
def test_steps(steps: str, found: str) -> None:
    assert groups(own(a=f"{X} | {steps}", y="linear(a, d_model)")) == [[found]]


def test_names_stay() -> None:
    """A value with a name, or one that is read twice, is the end of a chain."""
    spec = own(a=f"conv1d({X}, 4)", b="silu(a)", y="linear(l2norm(b) * a, d_model)")
    assert groups(spec) == [["a_conv"]]
    spec = own(a=f"l2norm(silu(conv1d({X}, 4)))", y="linear(a, d_model)")
    assert groups(spec) == [["a_conv silu l2norm"]]


def test_apart() -> None:
    """Other widths, a bias beside none, or one that needs the other: each has a launch of its own."""
    branch = f"silu(conv1d({X}, 4))"
    y = "linear(a * b, d_model)"
    assert groups(own(a=branch, b=branch, y=y)) == [["a_conv silu", "b_conv silu"]]
    assert groups(own(a=branch, b=f"silu(conv1d({X}, 3))", y=y)) == [["a_conv silu"], ["b_conv silu"]]
    assert groups(own(a=branch, b=f"conv1d({X}, 4, bias=true)", y=y)) == [["a_conv silu"], ["b_conv"]]
    assert groups(own(a=branch, b="silu(conv1d(a, 4))", y=y)) == [["a_conv silu"], ["b_conv silu"]]
    assert groups(own(a=branch, m="2 * a", b=branch, y="linear(m * b, d_model)")) == [
        ["a_conv silu"],
        ["b_conv silu"],
    ]


def test_printed() -> None:
    """The equations keep their names; without a name the call stands where its value is used."""
    assert lines(LIBRARY["gated_deltanet"]) == ["q_BTHK, k_BTHK, v_BTWV = conv_act_norm("]
    found = lines(own(a=f"silu(conv1d({X}, 4))", y="linear(a, d_model)"))
    assert found == ["a_BTHK = conv_act_norm("] and lines(LIBRARY["gated_deltanet"], "cpu") == []
    [found] = lines(own(a=f"exp(silu(conv1d({X}, 4)))", y="linear(a, d_model)"))
    assert found.startswith("torch.exp(") or "= torch.exp(" in found or found == "conv_act_norm("


@pytest.fixture(scope="module")
def gpu_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ModuleType]]:
    """The package of a mixer for a GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    made: dict[str, ModuleType] = {}

    def load(mixer: str) -> ModuleType:
        if mixer not in made:
            build(LIBRARY[mixer], folder / mixer, target="h100")
            made[mixer] = import_folder(folder / mixer, f"gpu_{mixer}")
        return made[mixer]

    yield load


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Logits of whole sequences, pieces with a state, packed rows; what is captured; gradients."""
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(64, (2, 23), generator=draw)
    logits = model(tokens)
    found = {"logits": logits}
    logits.square().mean().backward()
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        state = model.init_state(batch_size=2, max_length=32)
        found["pieces"] = torch.cat(
            [model(piece, state=state) for piece in tokens.split([2, 1, 12, 8], 1)], 1
        )
        found |= {f"state {name}": value for name, value in state.tensors().items()}
        row = tokens.reshape(1, -1)
        found["packed"] = model(row, cu_seqlens=torch.tensor([0, 5, 5, 6, 46]))
        found |= model(tokens, capture=["layers.0.*"])[1]
    return found


def same(mine: nn.Module, theirs: nn.Module) -> None:
    """Every value has its name, and errs against float64 by no more than four times what the other's does."""
    found, rough, exact = everything(mine), everything(theirs), everything(copy.deepcopy(theirs).double())
    assert found.keys() >= rough.keys() == exact.keys()
    for name, value in exact.items():
        finite = value.isfinite()  # absent entries are not
        assert torch.equal(finite, found[name].isfinite()), name
        want = value[finite]
        wide = torch.finfo(torch.float32).eps * want.abs().max()
        allowed = 4 * ((rough[name][finite] - want).abs().max() + wide)
        assert (found[name][finite] - want).abs().max() <= allowed, name


@pytest.mark.parametrize(
    "mixer",
    mostly_slow(
        [name for name in CONVOLVED if name in ("gated_deltanet", "mamba2", "mom")],
        lambda name: name == "mamba2",
    ),
)
@pytest.mark.parametrize("kernels", [False, True])
def test_package(
    mixer: str, kernels: bool, gpu_package: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package for a GPU is on a CPU what the one for a CPU is, also where it calls the operation."""
    torch.manual_seed(0)
    theirs = package(LIBRARY[mixer]).Model()
    mine = gpu_package(mixer).Model()
    randomise(theirs)
    mine.load_state_dict(theirs.state_dict())
    if kernels:
        fused = imported(f"{gpu_package(mixer).__name__}.fused_conv")
        monkeypatch.setattr(fused, "_has_kernel", lambda branch: True)
    same(mine, theirs)


def test_compiled(gpu_package: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, with the operation in it, for all lengths."""
    name = gpu_package("gated_deltanet").__name__
    fused, place, conv1d = (imported(f"{name}.{file}") for file in ("fused_conv", "place", "conv1d"))
    monkeypatch.setattr(fused, "_has_kernel", lambda branch: True)
    one, other = conv1d.CausalConv1d(24, 4), conv1d.CausalConv1d(16, 4)

    def both(x: Tensor, place: Any) -> tuple[Tensor, ...]:
        return fused.conv_act_norm(
            place,
            fused.Conv(one, "one", x[..., :24].unflatten(-1, (2, 12)), "silu", l2norm=1e-6),
            fused.Conv(other, "other", x[..., 24:], "relu"),
        )

    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend=count)
    for length in (5, 9, 33, 64):
        x = torch.randn(2, length, 40)
        here = place.Place(place.dense_layout(x))
        for mine, want in zip(compiled(x, here), both(x, here)):
            torch.testing.assert_close(mine, want)
    assert len(graphs) == 1
    called = [str(node.target) for node in graphs[0].graph.nodes]
    assert any("conv_act_norm" in target for target in called)


@pytest.mark.slow
def test_every_mixer_with_a_convolution() -> None:
    """Each prints a call for every convolution, and the state keeps its keys."""
    for mixer in CONVOLVED:
        spec = LIBRARY[mixer]
        convolutions = [
            node
            for module in graph_of(spec).modules.values()
            for node in module.subgraph.nodes
            if node.op == "conv1d"
        ]
        files = sources_of(spec, "h100")
        assert files["model.py"].count(" Conv(") + files["model.py"].count("(Conv(") == len(convolutions), (
            mixer
        )
        assert ("conv_kernels.py" in files) == bool(convolutions)


def test_kernels_of_a_model() -> None:
    """What is compiled ahead of time is what is launched: the same constants, each kernel once."""
    pytest.importorskip("triton")
    from archc.operations.conv1d import kernels as launched

    found = conv_kernels(graph_of(Path("specs/models/gdn_hybrid_340m.yaml")))
    assert [kernel.name for kernel in found] == [
        "conv_forward",
        "conv_backward",
        "conv_forward",
        "conv_backward",
        "conv_past_backward",
        "conv_last",
    ]
    steps = "silu l2norm, silu l2norm, silu none"
    branches = launched.branches([768, 768, 1536], [128, 128, 256], steps, [1e-6, 1e-6, 0.0], 4)
    forward, backward = found[:2]
    assert {kernel.num_warps for kernel in found} == {branches.warps(launched.BACKWARD_ENTRIES)} == {4}
    for kernel in found[:5]:
        assert branches._asdict().items() <= dict(kernel.constants).items()
        function = getattr(launched, kernel.name)
        assert {*kernel.signature, *kernel.constants} == set(function.arg_names)
    assert forward.constants["ROWS"] == branches.rows(launched.FORWARD_ENTRIES)
    assert forward.constants["STEPS"] == launched.FORWARD_STEPS
    assert backward.constants["ROWS"] == branches.rows(launched.BACKWARD_ENTRIES)
    assert backward.constants["STEPS"] == launched.BACKWARD_STEPS
