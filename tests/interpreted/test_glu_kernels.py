"""The product of an activated gate and a value, interpreted, against the torch form in float64."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archc.kernels.counting.counter import counting
from tests.interpreted.modules import assert_near, gradients, load, poisoned

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # of NumPy, where a sigmoid goes to 0

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The modules, with the kernels in the place of what runs on a CPU."""
    found = load(tmp_path_factory.mktemp("glu") / "glu_package", "fused_glu", "glu_kernels")
    fused = found.fused_glu
    for operation in (fused._forward, fused._backward):
        operation.register_kernel("cpu")(operation._init_fn)
    with pytest.MonkeyPatch.context() as patch, poisoned():
        patch.setattr(fused, "_has_kernel", lambda gate, up: True)
        yield found


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A gate, a value and the slope of their product."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) * 3 for _ in range(3)]


def kernels(package: SimpleNamespace, activation: str, given: list[Tensor]) -> list[Tensor]:
    """The product and the gradients of both."""
    inputs = [x.detach().requires_grad_() for x in given[:2]]
    y = package.fused_glu.gated(*inputs, activation)
    return [y, *gradients([y], inputs, given[2:])]


def torch_form(activation: str, given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The same from equal inputs by torch."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in given[:2]]
    y = ACTIVATIONS[activation](inputs[0]) * inputs[1]
    return [y, *gradients([y], inputs, given[2:])]


def check(package: SimpleNamespace, activation: str, given: list[Tensor]) -> None:
    exact, single = (torch_form(activation, given, dtype) for dtype in (torch.float64, torch.float32))
    assert_near(kernels(package, activation, given), single, exact)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "shape", [(2, 17, 24), (1, 3, 2049), (2, 3, 5, 33), (3, 7), (2, 0, 24), (0, 3, 24), (1, 1, 1)], ids=str
)
def test_values(package: SimpleNamespace, shape: tuple[int, ...], activation: str) -> None:
    check(package, activation, draw(*shape))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float16(package: SimpleNamespace, activation: str) -> None:
    check(package, activation, draw(2, 9, 128, dtype=torch.float16))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extremes(package: SimpleNamespace, activation: str) -> None:
    """Large gates on both sides have the value and the slope of the limit; relu has slope 0 at 0."""
    gate = torch.tensor([[[1e4, -1e4, 50.0, -50.0, 0.0, 1e-30, -1e-30, 90.0, -90.0]]])
    given = [gate, torch.full_like(gate, 2.0), torch.ones_like(gate)]
    got, want = kernels(package, activation, given), torch_form(activation, given, torch.float64)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_pieces_of_a_wider_tensor(package: SimpleNamespace, activation: str) -> None:
    """Halves of one product are read where they lie; turned values too."""
    gate, up = torch.randn(2, 9, 200).split([100, 100], -1)
    glu = package.fused_glu.gated
    whole = glu(gate.contiguous(), up.contiguous(), activation)
    with counting() as counted:
        apart = glu(gate, up, activation)
    assert torch.equal(apart, whole)
    assert [launch.name for launch in counted.launches] == ["glu_kernel"] and not counted.others
    heads = gate.unflatten(-1, (4, 25)).transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(glu(heads, up.unflatten(-1, (4, 25)), activation).flatten(2), whole)
    y = glu(gate.requires_grad_(), up, activation)
    assert torch.isfinite(torch.autograd.grad(y.sum(), gate)[0]).all()


def test_mixed_dtypes(package: SimpleNamespace) -> None:
    gate, up, slope = draw(2, 3, 24)
    got = kernels(package, "silu", [gate.half(), up, slope])
    assert [x.dtype for x in got] == [torch.float32, torch.float16, torch.float32]


def test_bytes(package: SimpleNamespace) -> None:
    """Each entry is read once and written once, in one launch each way; nothing but the inputs is kept."""
    given = draw(2, 16, 96)
    with counting() as counted:
        kernels(package, "silu", given)
    forward, backward = counted.launches
    entries = 4 * 2 * 16 * 96
    assert (forward.requested_read, forward.requested_written) == (2 * entries, entries)
    assert (backward.requested_read, backward.requested_written) == (3 * entries, 2 * entries)
    assert (backward.distinct_read, backward.distinct_written) == (3 * entries, 2 * entries)


def test_operation(package: SimpleNamespace) -> None:
    gate, up = (torch.randn(2, 3, 8, requires_grad=True) for _ in range(2))
    torch.library.opcheck(package.fused_glu._forward, (gate, up, "silu"))
    torch.library.opcheck(package.fused_glu._forward, (gate.detach().half(), up, "gelu"))
