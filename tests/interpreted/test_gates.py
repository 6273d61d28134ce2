"""Elementwise regions of bodies, interpreted: values, gradients, extremes, bytes, whole packages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archc.graph.costs import Sizes
from archc.graph.types import Graph, Module
from archc.kernels.counting.counter import counting
from archc.kernels.fusing.gate_view import Gate
from archc.kernels.gates import gate_kernels
from archc.kernels.triton_derivatives import SLOPES
from archc.pipeline import build, graph_of
from tests.interpreted.gates import draw, load_gates, register, results
from tests.interpreted.modules import assert_near, poisoned
from tests.laws.subjects import LIBRARY, one_mixer
from tests.support.imports import imported
from tests.support.packages import import_folder, randomise
from tests.support.slow import mostly_slow

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered")  # of NumPy, at infinity

MIXERS = ("kda", "gated_deltanet", "gla", "rwkv7", "mamba2", "mingru", "rwkv6", "hgrn2", "rglru")
Found = tuple[SimpleNamespace, list[tuple[Module, Gate]]]


@pytest.fixture(scope="module")
def regions_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mixer of the library as a function of its name -> its regions as modules; what is not written is NaN."""

    @cache
    def found(name: str) -> Found:
        return load_gates(graph_of(LIBRARY[name]), tmp_path_factory.mktemp(name) / f"gates_of_{name}")

    with poisoned():
        yield found


def run(
    loaded: SimpleNamespace, gate: Gate, operands: list[Tensor], numbers: list[float], kernels: bool
) -> list[Tensor]:
    """Results and gradients, by kernels or by the torch form."""
    loaded.gates._has_kernel = lambda *operands: kernels
    return results(getattr(loaded.gates, gate.name), operands, numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", mostly_slow(MIXERS, lambda name: name in ("kda", "gated_deltanet", "mamba2"))
)
def test_values(name: str, dtype: torch.dtype, regions_of: Any) -> None:
    """Results and gradients beside float64 and the torch form, of equal operands; ragged, several programs, empty."""
    loaded, which = regions_of(name)
    for module, gate in which:
        # An equation with a name is rounded, also where float32 values are made of it.
        inside = dtype if any(".element_ty" in line for line in gate.inner) else None
        for tokens in ((2, 37), (1, 261), (3, 0)):
            operands, numbers = draw(module, gate, tokens, dtype)
            exact = run(loaded, gate, [x.double() for x in operands], numbers, False)
            single = run(loaded, gate, [x.float() for x in operands], numbers, False)
            ours = run(loaded, gate, operands, numbers, True)
            theirs = run(loaded, gate, operands, numbers, False)
            assert [(x.dtype, x.shape) for x in ours] == [(x.dtype, x.shape) for x in theirs]
            per_token = [*[True] * len(gate.results), *(o.per_token for o in gate.operands)]
            for one, of, exactly, token in zip(ours, single, exact, per_token, strict=True):
                if token:
                    assert_near([one], [of], [exactly], inside)
                elif one.numel():  # a sum, in which every partial sum is rounded
                    eps = torch.finfo(torch.float32).eps * math.log2(tokens[0] * tokens[1] + 2)
                    eps += torch.finfo(one.dtype).eps
                    assert (one.double() - exactly).abs().max() <= 2 * eps * exactly.abs().max()


EXTREMES = torch.tensor(
    [
        0.0,
        1e4,
        -1e4,
        1e-40,
        -1e-40,
        1.0,
        -1.0,
        0.5,
        0.5,
        20.5,
        -20.5,
        88.0,
        -88.0,
        100.0,
        -104.0,
        1e-20,
        -3e38,
        2.0,
    ],
    dtype=torch.float64,
)
# Function -> an equation with it; `b` is another value of tokens.
BODIES = {
    **{
        name: f"{name}(a) + b"
        for name in SLOPES
        if len(SLOPES[name]) == 1 and name not in ("neg", "fp32", "detach")
    },
    "neg": "exp(-a) + b",
    "add": "exp(a + b)",
    "sub": "exp(a - b)",
    "mul": "exp(a * b)",
    "div": "exp(a / b)",
    "min": "min(a, b) + 1",
    "max": "max(a, b) + 1",
    "min with a number": "min(a, 1/2) + b",
    "max with a number": "max(1/2, a) + b",
    "pow": "a ** b + 1",
    "pow of an exponent": "a ** (head_dim / 6) + b",
    "pow of a number": "(3/2) ** a + b",
    **{f"pow {power}": f"a ** ({power}) + b" for power in ("2", "3", "4", "1/2", "-1/2", "-1", "-2", "5")},
    "logaddexp": "logaddexp(a, b) + 1",
    "logaddexp with a number": "logaddexp(a, 1/2) + b",
    "atan2": "atan2(a, b) + 1",
    "logical_and": "where(a > 0 and b > 0, a * 2, b)",
    "logical_or": "where(a > 0 or b > 0, a * 2, b)",
    "logical_not": "where(not a > b, a * 2, b)",
    "clip": "clip(a, -1, 1/2) + b",
    "where": "where(a > b, exp(a), b)",
    "less": "where(a < b, a * 2, b)",
    "less_equal": "where(a <= b, a * 2, b)",
    "greater_equal": "where(a >= b, a * 2, b)",
    "equal": "where(a == b, a * 2, b)",
    "not_equal": "where(a != b, a * 2, b)",
    "fp32": "fp32(a) * exp(fp32(b))",
    "silu twice": "silu(a) + silu(a) * silu(b) + b",
}

EPS = torch.finfo(torch.float32).eps
# Powers by logarithms, of which 128 is the largest: a rounding of one is that much of the power. And of small operands
# of `atan2` a sum of squares is a denormal, with 17 digits.
ROUGH = ("pow", "pow of an exponent", "pow of a number", "pow 5", "atan2")


def own(equation: str) -> Graph:
    """A model whose mixer has this equation between matrices."""
    body = {
        "a": "linear(x, [n_heads, head_dim])",
        "b": "linear(x, [n_heads, head_dim])",
        **({"gain": "linear(x, [n_heads])"} if "gain" in equation else {}),
        "u": equation,
        "y": "linear(u, d_model)",
    }
    spec = dict(one_mixer("own", {"use": "own"}))
    params = {"n_heads": {"type": "int", "default": 2}, "head_dim": {"type": "int", "default": 9}}
    spec["mixers"] = {"own": {"params": params, "body": body}}
    return graph_of(spec)


@pytest.mark.parametrize("name", mostly_slow(BODIES, 4))
def test_extremes(name: str, tmp_path: Path) -> None:
    """Values and slopes are the torch form's at 0, beyond the range of exponentials, at denormals and at ties."""
    loaded, [(module, gate)] = load_gates(own(BODIES[name]), tmp_path / f"gates_{list(BODIES).index(name)}")
    operands, numbers = draw(module, gate, (2, 5), values=EXTREMES)
    tied = [operands[0].clone() for _ in operands]
    rough = {"rtol": 128 * EPS, "atol": 1e-5} if name in ROUGH else {}
    for given in (operands, tied):
        ours = run(loaded, gate, given, numbers, True)
        # The slopes of torch's `atan2` are no numbers in float32 where the sum of squares is beyond it.
        wide = [x.double() for x in given] if name == "atan2" else given
        theirs = run(loaded, gate, wide, numbers, False)
        for mine, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, wanted.to(mine.dtype), equal_nan=True, **rough)


def test_what_does_not_exist_counts_nothing(tmp_path: Path) -> None:
    """Sums over tokens, entries and both leave out the places of a tile beyond them, where 0 / 0 is no number."""
    equation = "gain / a * param(p, [n_heads, head_dim]) / a + param(r, [n_heads]) / a * b"
    loaded, [(module, gate)] = load_gates(own(equation), tmp_path / "gates_masked")
    operands, numbers = draw(module, gate, (1, 5))
    assert {operand.kind for operand in gate.operands} == {"TC", "T", "C", ""}
    with poisoned():
        ours, theirs = (run(loaded, gate, operands, numbers, kernels) for kernels in (True, False))
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


def test_every_function_with_a_derivative_is_held() -> None:
    assert {name.split()[0] for name in BODIES} | {"detach", "greater"} == set(SLOPES)


def test_pieces_of_a_wider_tensor(regions_of: Any) -> None:
    """Operands are read where they lie, slopes that are expanded are not."""
    loaded, which = regions_of("kda")
    [(module, gate)] = which
    (gain, x, bias, rate), _ = draw(module, gate, (2, 21))
    run(loaded, gate, [gain, x, bias, rate], [], True)
    wide, gains = torch.cat((x, x + 1), -2), torch.cat((gain, gain + 1), -1)
    want = loaded.gates.kda_beta_decay(gain, x, bias, rate)
    with counting() as counted:
        apart = loaded.gates.kda_beta_decay(gains[:, :, : x.shape[2]], wide[:, :, : x.shape[2]], bias, rate)
    assert all(map(torch.equal, apart, want))
    assert [launch.name for launch in counted.launches] == ["kda_beta_decay_kernel"] and not counted.others
    turned = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    beta, decay = loaded.gates.kda_beta_decay(gain, turned, bias, rate)
    assert torch.equal(beta, want[0]) and torch.equal(decay, want[1])
    (slope,) = torch.autograd.grad(decay.sum(), turned)
    assert torch.isfinite(slope).all()


ENDS = ("_kernel", "_backward_kernel")


def heads_of(module: Module) -> int:
    """Heads of a mixer's state."""
    node = next(node for node in module.subgraph.nodes if node.op == "recurrence")
    return Sizes(module.values).axis(node.attrs["state_heads"])


@pytest.mark.parametrize(
    "name", mostly_slow(["kda", "gated_deltanet", "mamba2", "rwkv7"], lambda n: n == "kda")
)
def test_bytes(name: str, regions_of: Any) -> None:
    """Every entry of a token is read once and written once, in one launch each way; `archc kernels` says how many."""
    loaded, which = regions_of(name)
    planned = {kernel.name: kernel.moved for kernel in gate_kernels(graph_of(LIBRARY[name]), "fp32")}
    for module, gate in which:
        operands, numbers = draw(module, gate, (1, 1))
        shape = next(x for x, o in zip(operands, gate.operands) if o.kind == "TC").shape[2:]
        entries = shape.numel()
        block = loaded.kernels._tile(shape[gate.outer :].numel(), gate.whole)[0]
        span = max(loaded.kernels.TOKENS, block)  # tokens that a program sums over
        moved = []
        for tokens in (span, 2 * span):
            with counting() as counted:
                run(loaded, gate, draw(module, gate, (1, tokens))[0], numbers, True)
            launches = counted.launches
            assert [each.name for each in launches] == [f"{gate.name}_kernel", f"{gate.name}_backward_kernel"]
            moved.append([launch.distinct for launch in launches])
        forward, backward = (b - a for a, b in zip(*moved))
        read = sum(x.numel() for x, o in zip(operands, gate.operands) if o.per_token and o.loaded)
        written = sum(entries if r.kind == "TC" else shape[: gate.outer].numel() for r in gate.results)
        assert forward == 4 * span * (read + written)
        heads = heads_of(module)
        assert (forward, backward) == tuple(
            round(planned[f"{gate.name}{end}"] * heads * span) for end in ENDS
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "heads", "wanted"),
    [
        ({"use": "kda", "n_heads": 1}, 1, [(3844, 5894), (772, 1038), (7, 1)]),
        ({"use": "gated_deltanet", "n_heads": 8, "head_dim": 16}, 8, [(34, 52), (10, 14), (7, 1)]),
    ],
)
def test_bytes_beside_torch(
    use: dict[str, Any], heads: int, wanted: list[tuple[int, int]], tmp_path: Path
) -> None:
    """The figures of docs/gpu.md, a token and head in two bytes: of the torch form, of kernels; launches."""
    loaded, [(module, gate)] = load_gates(
        graph_of(one_mixer("wide", use)), tmp_path / f"gates_of_{use['use']}"
    )
    figures, launches = [], []
    for kernels in (False, True):
        loaded.gates._has_kernel = lambda *operands, kernels=kernels: kernels
        moved = []
        for tokens in (128, 256):
            operands, numbers = draw(module, gate, (1, tokens), torch.float16)
            given = [x.requires_grad_() for x in operands]
            with counting() as ahead:
                made = getattr(loaded.gates, gate.name)(*given, *numbers)
            made = [made] if isinstance(made, Tensor) else list(made)
            slopes = [torch.ones_like(y) for y in made]
            with counting() as behind:
                torch.autograd.grad(made, given, slopes)
            moved.append((ahead.distinct, behind.distinct))
        launches.append(len(ahead.launches) + len(ahead.others))
        figures.append(tuple(round((b - a) / (128 * heads)) for a, b in zip(*moved)))
    assert [*figures, tuple(launches)] == wanted


@pytest.mark.parametrize("name", mostly_slow(["kda", "mingru", "rwkv7"], lambda name: name == "kda"))
def test_operation(name: str, regions_of: Any) -> None:
    """The operations keep their contract, with several results, numbers, and dtypes that differ."""
    loaded, which = regions_of(name)
    module, gate = which[min(1, len(which) - 1)]
    operands, numbers = draw(module, gate, (2, 5))
    run(loaded, gate, operands, numbers, True)
    operation = getattr(loaded.gates, f"_{gate.name}")
    torch.library.opcheck(operation, (*(x.requires_grad_() for x in operands), *numbers))
    halves, _ = draw(module, gate, (2, 5), torch.float16)
    torch.library.opcheck(operation, (*halves, *numbers))


def test_compiles_without_a_break(regions_of: Any) -> None:
    loaded, [(module, gate)] = regions_of("kda")
    operands, numbers = draw(module, gate, (2, 21))
    want = run(loaded, gate, operands, numbers, True)
    compiled = torch.compile(loaded.gates.kda_beta_decay, fullgraph=True, backend="aot_eager", dynamic=True)
    for mine, theirs in zip(results(compiled, operands, numbers), want, strict=True):
        assert torch.equal(mine, theirs)


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Logits, gradients, packed rows, pieces with a state, captured values."""
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    logits = model(tokens)
    logits.square().mean().backward()
    found = {"logits": logits.detach()}
    found |= {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        found["packed"] = model(tokens.reshape(1, -1), cu_seqlens=torch.tensor([0, 5, 5, 16]))[:, :16]
        state = model.init_state(batch_size=2, max_length=16)
        found["pieces"] = torch.cat([model(piece, state=state) for piece in tokens.split([7, 1, 1], 1)], 1)
        return found | model(tokens, capture=["layers.*"])[1]


QUICK = ("gated_deltanet", "rwkv7")


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", mostly_slow(LIBRARY, lambda name: name in QUICK, "library"))
def test_package(name: str, tmp_path: Path) -> None:
    """A package with the kernels of its regions gives what it gives in the torch form, captured equations too."""
    build(LIBRARY[name], tmp_path / "package", target="h100")
    if not (tmp_path / "package" / "gates.py").exists():
        assert name not in QUICK, "its gates are no longer one launch"
        pytest.skip("nothing of it goes entry by entry")
    package = import_folder(tmp_path / "package", f"interpreted_gates_{name}")
    model = randomise(package.Model())
    want = everything(model)
    gates = imported(f"{package.__name__}.gates")
    register(gates)
    gates._has_kernel = lambda *operands: True
    got = everything(model)
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5, msg=lambda text: f"{key}: {text}")  # noqa: B023
    if name == "rwkv7":  # inside of launches
        assert {"layers.0.mixer.a", "layers.0.mixer.past", "layers.1.mixer.mu"} <= got.keys()
