"""rmsnorm and its product with a gate, interpreted, against the torch form in float64."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from archc.kernels.counting.counter import counting
from tests.interpreted.modules import assert_near, gradients, load, poisoned


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The modules, with the kernels in the place of what runs on a CPU."""
    found = load(tmp_path_factory.mktemp("norms") / "norm_package", "norms", "fused_norms", "norm_kernels")
    fused = found.fused_norms
    for operation in (fused._forward, fused._backward):
        operation.register_kernel("cpu")(operation._init_fn)
    with pytest.MonkeyPatch.context() as patch, poisoned():
        patch.setattr(fused, "_has_kernel", lambda x, gate, dims: True)
        yield found


class Case:
    """Inputs in a dtype, and what is made of them."""

    def __init__(
        self,
        package: SimpleNamespace,
        shape: tuple[int, ...],
        weight: tuple[int, ...] | None = None,
        dims: int = 1,
        activation: str | None = None,
        zero_centred: bool = False,
        dtype: torch.dtype = torch.float32,
        scale: float = 1.0,
    ) -> None:
        draw = torch.Generator().manual_seed(0)
        self.package, self.dims, self.activation = package, tuple(range(-dims, 0)), activation
        self.zero_centred = zero_centred
        shapes = [shape, *([] if weight is None else [weight]), *([] if activation is None else [shape])]
        self.inputs = [torch.randn(s, generator=draw).to(dtype) for s in shapes]
        self.inputs[0] *= scale
        self.has_weight = weight is not None
        self.dy = torch.randn(shape, generator=draw).to(dtype)

    def _sorted(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, *rest = inputs
        weight = rest.pop(0) if self.has_weight else None
        return x, weight, rest[0] if rest else None

    def kernels(self) -> list[Tensor]:
        """y and the gradients."""
        inputs = [x.detach().requires_grad_() for x in self.inputs]
        x, weight, gate = self._sorted(inputs)
        y = self.package.fused_norms.rmsnorm(
            x,
            weight,
            eps=1e-5,
            dims=self.dims,
            zero_centred=self.zero_centred,
            gate=gate,
            activation=self.activation or "none",
        )
        return [y, *gradients([y], inputs, [self.dy])]

    def torch_form(self, dtype: torch.dtype) -> list[Tensor]:
        """The same from equal inputs by torch."""
        inputs = [x.detach().to(dtype).requires_grad_() for x in self.inputs]
        x, weight, gate = self._sorted(inputs)
        y = self.package.norms.rmsnorm(x, weight, eps=1e-5, dims=self.dims, zero_centred=self.zero_centred)
        if gate is not None:
            y = y * {"none": lambda g: g, "silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid}[
                self.activation or "none"
            ](gate)
        return [y, *gradients([y], inputs, [self.dy])]

    def check(self) -> None:
        """Kernels against float64."""
        assert_near(self.kernels(), self.torch_form(torch.float32), self.torch_form(torch.float64))


@pytest.mark.parametrize("activation", [None, "none", "silu", "sigmoid"])
@pytest.mark.parametrize("width", [24, 64, 100])
def test_widths(package: SimpleNamespace, width: int, activation: str | None) -> None:
    Case(package, (2, 17, 3, width), (width,), activation=activation).check()


@pytest.mark.parametrize("width", [1, 1000, 4096])
def test_whole_rows(package: SimpleNamespace, width: int) -> None:
    Case(package, (2, 3, width), (width,)).check()
    Case(package, (1, 3, width), (width,), activation="silu").check()


@pytest.mark.parametrize(
    ("weight", "dims"),
    [(None, 1), ((3, 40), 1), ((40,), 2), ((3, 40), 2), ((2, 3, 40), 2), (None, 2)],
    ids=str,
)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_weights(
    package: SimpleNamespace, weight: tuple[int, ...] | None, dims: int, activation: str | None
) -> None:
    """None, one for each head, fewer axes than the mean has, more."""
    Case(package, (2, 9, 2, 3, 40), weight, dims, activation).check()


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_zero_centred(package: SimpleNamespace, activation: str | None) -> None:
    Case(package, (2, 9, 24), (24,), activation=activation, zero_centred=True).check()
    Case(package, (2, 9, 2, 24), (2, 24), activation=activation, zero_centred=True).check()


@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24), (1, 1, 24), (1500, 1, 2)], ids=str)
def test_numbers_of_rows(package: SimpleNamespace, shape: tuple[int, ...]) -> None:
    """None, one, more than there are programs of the backward."""
    Case(package, shape, shape[-1:], activation="silu").check()


def test_many_rows_a_program(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the backward walk over rows; the weight's gradient is the same in every run."""
    monkeypatch.setattr(package.norm_kernels, "PARTS", 3)
    case = Case(package, (2, 150, 2, 64), (64,), activation="silu")
    case.check()
    assert all(torch.equal(a, b) for a, b in zip(case.kernels(), case.kernels(), strict=True))
    Case(package, (2, 150, 2, 64), (2, 64)).check()


def test_float16(package: SimpleNamespace) -> None:
    Case(package, (2, 9, 2, 64), (64,), activation="silu", dtype=torch.float16).check()
    Case(package, (2, 9, 128), (128,), dtype=torch.float16).check()


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of NumPy, where a sigmoid goes to 0
@pytest.mark.parametrize("scale", [1e4, 1e-4, 0.0])
def test_extremes(package: SimpleNamespace, scale: float) -> None:
    case = Case(package, (2, 9, 24), (24,), activation="silu", scale=scale)
    case.inputs[2][0] *= 1e4
    case.check()


def test_mixed_dtypes(package: SimpleNamespace) -> None:
    """A float32 weight or gate beside float16 activations, as under autocast."""
    x, weight, gate = torch.randn(2, 3, 24).half(), torch.randn(24), torch.randn(2, 3, 24)
    rmsnorm = package.fused_norms.rmsnorm
    assert rmsnorm(x, weight, eps=1e-5).dtype == torch.float16
    assert rmsnorm(x, weight, eps=1e-5, gate=gate).dtype == torch.float32


def test_pieces_of_a_wider_tensor(package: SimpleNamespace) -> None:
    """Rows with gaps between tokens are read where they lie; expanded and turned values too."""
    wide = torch.randn(2, 9, 200)
    weight = torch.randn(32)
    x, gate = wide[..., :96].unflatten(-1, (3, 32)), wide[..., 100:196].unflatten(-1, (3, 32))
    rmsnorm = package.fused_norms.rmsnorm
    whole = rmsnorm(x.contiguous(), weight, eps=1e-5, gate=gate.contiguous(), activation="silu")
    assert torch.equal(rmsnorm(x, weight, eps=1e-5, gate=gate, activation="silu"), whole)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(rmsnorm(turned, weight, eps=1e-5, gate=gate, activation="silu"), whole)
    each = weight.expand(3, 32)
    assert torch.equal(rmsnorm(x, each, eps=1e-5, gate=gate, activation="silu"), whole)
    few = torch.randn(2, 5, 4).transpose(0, 1)  # values of the model, without tokens
    assert torch.equal(
        rmsnorm(few, eps=1e-5, dims=(-2, -1)), rmsnorm(few.contiguous(), eps=1e-5, dims=(-2, -1))
    )
    y = rmsnorm(x.requires_grad_(), weight, eps=1e-5)
    assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()  # a slope without memory of its own


def test_bytes(package: SimpleNamespace) -> None:
    """Each entry is read once and written once; nothing but the inputs is kept."""
    case = Case(package, (2, 64, 2, 64), (64,), activation="silu")
    with counting() as counted:
        case.kernels()
    forward, backward = counted.launches
    entries, weight, parts = 4 * 2 * 64 * 2 * 64, 4 * 64, 8
    assert (forward.distinct_read, forward.distinct_written) == (2 * entries + weight, entries)
    assert (backward.distinct_read, backward.distinct_written) == (
        3 * entries + weight,
        2 * entries + parts * weight,
    )
    assert forward.requested_read == 2 * entries + parts * weight
    assert backward.requested_read == 3 * entries + parts * weight


@pytest.mark.parametrize("gated", [False, True])
def test_operation(package: SimpleNamespace, gated: bool) -> None:
    x, gate = (torch.randn(2, 3, 8, requires_grad=True) for _ in range(2))
    weight = torch.randn(8, requires_grad=True)
    arguments = (x, weight, gate if gated else None, 1e-5, 8, False, "silu" if gated else "none")
    torch.library.opcheck(package.fused_norms._forward, arguments)
    torch.library.opcheck(package.fused_norms._forward, (x, None, *arguments[2:]))


def test_compiled(package: SimpleNamespace) -> None:
    """One graph, whatever the number of rows."""
    rmsnorm = package.fused_norms.rmsnorm
    weight = torch.randn(24, requires_grad=True)
    compiled = torch.compile(
        lambda x, g: rmsnorm(x, weight, eps=1e-5, gate=g, activation="silu"),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for rows in (3, 17, 8):
        x, gate = (torch.randn(2, rows, 24, requires_grad=True) for _ in range(2))
        mine, theirs = compiled(x, gate), rmsnorm(x, weight, eps=1e-5, gate=gate, activation="silu")
        assert torch.equal(mine, theirs)
        slopes = [torch.autograd.grad(y.square().sum(), [x, gate, weight]) for y in (mine, theirs)]
        assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))
