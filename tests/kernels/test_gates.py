"""Elementwise regions of bodies: which they are, what packages have of them, and kernels as they are launched."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import archc
from archc.codegen.package import package_files
from archc.graph.functions import FUNCTIONS
from archc.graph.types import Graph
from archc.kernels.fusing.gate_files import once
from archc.kernels.fusing.gate_view import Gate
from archc.kernels.fusing.gates import gates_of
from archc.kernels.gates import gate_kernels
from archc.kernels.report import kernel_bounds
from archc.kernels.targets import load_target, target_names
from archc.kernels.triton_derivatives import SLOPES
from archc.pipeline import graph_of, sources_of
from archc.printing.letters import assign_letters
from archc.printing.printer import filled
from tests.laws.subjects import LIBRARY, one_mixer

TARGETS = [pytest.param(name, marks=pytest.mark.slow) for name in ("h100", "a100")]
TARGETS.append(pytest.param("mi300x", marks=pytest.mark.library))

X = "linear(x, [n_heads, head_dim])"


def own(**body: str) -> Graph:
    """A model whose mixer has these equations."""
    spec = dict(one_mixer("own", {"use": "own"}))
    params = {"n_heads": {"type": "int", "default": 2}, "head_dim": {"type": "int", "default": 12}}
    spec["mixers"] = {"own": {"params": params, "body": body}}
    return graph_of(spec)


def found(graph: Graph) -> list[Gate]:
    return once(gates_of(graph, assign_letters(graph)))


def in_short(gate: Gate) -> tuple[list[str], list[str]]:
    """Results and operands by name."""
    return [result.plain for result in gate.results], [operand.plain for operand in gate.operands]


@pytest.mark.parametrize(
    ("body", "regions"),
    [
        (  # what several would read is one launch of several results
            {"a": X, "b": "exp(a) + 1", "c": "tanh(a) * 2", "u": "linear(b, d_model)", "v": "linear(c, d_model)",
             "y": "u + v"},
            [(["b", "c"], ["a"])],
        ),
        (  # a result that is needed before all operands are there stands alone, and is too little
            {"a": X, "b": "tanh(a)", "c": "linear(b, [n_heads, head_dim])", "y": "linear(c * 2 + b, d_model)"},
            [(["y_add"], ["c", "b"])],
        ),
        (  # products with an activated gate come first
            {"a": X, "b": X, "c": "silu(a) * b", "y": "linear(c, d_model)"},
            [],
        ),
        (  # a number of each head, and parameters of heads and entries
            {
                "a": X,
                "gain": "linear(x, [n_heads])",
                "b": "a * gain + param(p, [n_heads]) * param(r, [n_heads, head_dim])",
                "y": "linear(b, d_model)",
            },
            [(["b"], ["a", "gain", "p", "r"])],
        ),
        ({"a": X, "y": "linear(tanh(a), d_model)"}, []),  # nothing would be saved
        ({"a": X, "y": "linear(a % 2 * 2, d_model)"}, []),  # no derivative in a kernel
        (  # what is true or false lies with its readers, however many they are
            {"a": X, "b": X, "c": "a > 0 and not b > 0", "y": "linear(where(c, sin(a), b) * where(c, b, a), d_model)"},
            [(["y_mul"], ["a", "b"])],
        ),
        ({"a": X, "y": "linear(rmsnorm(a) * 2, d_model)"}, []),
        (  # of entries that do not fit one program
            {
                "gain": "linear(x, [n_heads])",
                "a": "linear(x, [n_heads, 4096])",
                "y": "linear(tanh(a * gain), d_model)",
            },
            [],
        ),
        (  # and one of numbers of a head a region of their channels
            {"a": X, "gain": "linear(x, [n_heads])", "b": "sigmoid(gain)", "c": "tanh(a) * 2",
             "u": "linear(b, d_model)", "v": "linear(c, d_model)", "y": "u + v"},
            [(["b", "c"], ["gain", "a"])],
        ),
        (  # a lone operation joins one over the same axes
            {"a": "linear(x, [n_heads])", "b": "linear(x, [n_heads])", "c": "exp(a) + 1", "d": "tanh(b)",
             "u": "linear(c, d_model)", "v": "linear(d, d_model)", "y": "u + v"},
            [(["c", "d"], ["a", "b"])],
        ),
    ],
)  # fmt: skip
def test_regions(body: Mapping[str, str], regions: list[tuple[list[str], list[str]]]) -> None:
    shown = [in_short(gate) for gate in found(own(**body)) if gate.name.startswith("own")]
    assert shown == regions, shown


def test_mixes_of_a_token_with_the_one_before() -> None:
    """Six values of two: what is inside is computed where somebody looks at it, from operands that have names."""
    files = sources_of(LIBRARY["rwkv7"], "h100")
    model = files["model.py"]
    call = "xr_BTD, xw_BTD, xk_BTD, xv_BTD, xa_BTD, xg_BTD = rwkv7_xr_to_xg("
    assert call in model and "from .gates import" in model
    shown = model.split("if place.patterns:", 1)[1].split("place.keep_all")[0].split("\n")
    assert [line.strip() for line in shown if line.strip()] == [
        "past_BTD = past_shift_BTD - x_BTD",
        "a_BTHK = torch.sigmoid(a_linear_BTHK)",
        "bonus_BTHK = bonus_sum_BTH[..., None] * v0_BTHK",
    ]


def test_files() -> None:
    """In packages for a GPU only, and only where there is a region; Triton in the kernels' file alone."""
    for name, has in (("kda", True), ("delta_net", False)):
        files, plain = sources_of(LIBRARY[name], "h100"), sources_of(LIBRARY[name])
        assert ("gates.py" in files) == ("gates_kernels.py" in files) == has
        assert not {"gates.py", "gates_kernels.py"} & set(plain)
        assert "kda_beta_decay" not in plain["model.py"]
    text = sources_of(LIBRARY["kda"], "h100")["gates.py"]
    assert "triton" not in text and "\n    from .gates_kernels import" in text


def test_every_function_has_a_derivative_or_stays_with_torch() -> None:
    """A new function of the language is fused once it has a rule."""
    assert set(FUNCTIONS) - set(SLOPES) == {"floordiv", "mod"}
    assert set(SLOPES) <= set(FUNCTIONS)


def test_equal_regions_of_two_classes_are_one_function() -> None:
    """The first layer of RWKV-7 differs from the others; what both do alike is written once."""
    names = [gate.name for gate in found(graph_of(LIBRARY["rwkv7"]))]
    assert len(names) == len(set(names)) and names.count("rwkv7_xr_to_xg") == 1
    assert "rwkv7_xr_to_xg_2" not in names


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleType]:
    """Mixer -> its kernels' file, which sees Triton."""
    pytest.importorskip("triton")
    modules = {}
    for name in ("kda", "gated_deltanet", "rwkv7"):
        path = tmp_path_factory.mktemp(name) / "gates_kernels.py"
        path.write_text(package_files(graph_of(LIBRARY[name]), target=load_target("h100"))[path.name])
        spec = importlib.util.spec_from_file_location(f"{name}_gates_kernels", path)
        assert spec is not None and spec.loader is not None
        modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    return modules


def test_described_as_launched(launched: Mapping[str, Any]) -> None:
    """What is compiled ahead of time has the arguments, tiles and warps of the launch."""
    for name, module in launched.items():
        kernels = gate_kernels(graph_of(LIBRARY[name]))
        for kernel in kernels:
            constants = kernel.constants
            assert {*kernel.signature, *constants} == set(getattr(module, kernel.name).arg_names)
            whole = "HEADS" in constants
            assert (constants["BLOCK_T"], constants["BLOCK_C"]) == module._tile(constants["CHANNELS"], whole)
            assert constants.get("BLOCKS", 1) in (1, module.TOKENS // constants["BLOCK_T"])
            assert kernel.num_warps == module.WARPS


def test_types() -> None:
    """A decay and its parameters are float32, what comes from a matrix has the dtype of the model."""
    forward, backward = gate_kernels(graph_of(LIBRARY["kda"]))
    assert (forward.name, forward.role) == ("kda_beta_decay_kernel", "gates")
    pointers = [type_ for type_ in forward.signature.values() if str(type_).startswith("*")]
    assert pointers == ["*bf16", "*bf16", "*fp32", "*fp32", "*bf16", "*fp32"]
    pointers = [type_ for type_ in backward.signature.values() if str(type_).startswith("*")]
    read = ["*bf16", "*fp32", "*bf16", "*bf16", "*fp32", "*fp32"]
    assert pointers == [*read, "*bf16", "*bf16", "*fp32", "*fp32"]
    assert forward.span is not None and forward.span.path.endswith("mamba_channel_decay.yaml")


def test_work() -> None:
    """FLOP and exponentials a token and head of beta and -exp(A_log) softplus(x + dt_bias), 16 channels, by hand."""
    forward, backward = gate_kernels(graph_of(LIBRARY["kda"]))
    # x + bias and the product are 2 FLOP; softplus has 5, a logarithm and an exponential. exp(A_log) for 64 tokens.
    # beta is a sigmoid: 2 FLOP and an exponential.
    assert (forward.flops, forward.exponentials) == (16 * (2 + 5) + 2, 16 * 2 + 1 + 1 / 64)
    # x + bias; d exp(A_log); times a sigmoid, which has 2 and an exponential; d softplus; a sum of either for a tile of
    # 64 tokens, which is added to those before, of channels and of the head; a product for all 128 tokens.
    # beta again, and d beta (1 - beta).
    assert backward.flops == 16 * (1 + 1 + 3 + 6 + 1 + 1) + (16 + 1) / 64 + 1 / 128 + 2 + 3
    assert backward.exponentials == 16 * 3 + 1 + 1 / 128


def test_bounds() -> None:
    """Work over the rates of what does it, which is not the matrix unit; nothing waits for a product."""
    h100 = load_target("h100")
    kernel, _ = gate_kernels(graph_of(LIBRARY["kda"]))
    found = kernel_bounds(kernel, {}, h100)
    assert found is not None and found.chain == 0.0 and found.binding == "bytes"
    assert found.flops == kernel.flops / 67e12
    assert found.exponentials == kernel.exponentials / (132 * 16 * 1.83e9)
    for target in map(load_target, target_names()):
        assert target.vector_rate is not None and target.vector_rate < target.matrix_rate["bf16"] / 1.9, (
            target.name
        )


def test_signs() -> None:
    """Two of them are none, in the printer and nowhere else; a difference is printed as one."""
    assert filled("-softplus(-{0})", "-a") == "-softplus(a)"
    assert filled("{0} + {1}", "a", "-b * c") == "a - b * c"
    folder = Path(archc.__file__).parent
    assert [p.name for p in folder.rglob("*.py") if '.replace("--"' in p.read_text()] == ["printer.py"]


def test_what_is_made_of_polynomials_counts_as_the_language_says() -> None:
    """`sin` 4 FLOP, a helper what its text has, an address nothing."""
    for equation, wanted in (
        ("sin(a) * 2", (5, 0)),
        ("logaddexp(a, 1) + a ** 3", (1 + 1 + 1 + 4 + 1 + 2, 2)),
        ("rsqrt(a) / 3", (1, 1)),
    ):
        kernel = next(
            k for k in gate_kernels(own(a=X, u=equation, y="linear(u, d_model)")) if k.name.startswith("own")
        )
        assert (kernel.flops, kernel.exponentials) == tuple(24 * count for count in wanted), equation


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
def test_they_fit(target: str) -> None:
    """Nothing spills, at the width of real models."""
    from archc.kernels.compile import verify

    pytest.importorskip("triton")
    gpu = load_target(target)
    for model in ("kda_small", "gdn_hybrid_340m", "rwkv7_small"):
        kernels = gate_kernels(graph_of(Path("specs/models") / f"{model}.yaml"), warp_size=gpu.warp_size)
        for fit in verify(kernels, gpu):
            assert fit.fits and fit.found is not None, f"{fit.name}: {fit.verdict}"
            assert fit.found.spills == fit.found.stack == 0, fit.name
