"""Convolution, activation and norm in one launch, interpreted, against the torch form in float64."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from archc.kernels.counting.counter import counting
from archc.pipeline import build
from tests.laws.subjects import LIBRARY
from tests.support.imports import imported
from tests.support.packages import import_folder, randomise
from tests.support.packages import package as package_of
from tests.support.slow import mostly_slow

FILES = {
    "fused_conv": "archc/operations/conv1d/fused.py",
    "conv_kernels": "archc/operations/conv1d/kernels.py",
    "conv1d": "archc/operations/conv1d/runtime.py",
    "norms": "archc/operations/norms/runtime.py",
    "history": "templates/runtime/history.py",
    "place": "templates/runtime/place.py",
}
QKV = (("silu", "l2norm"), ("silu", "l2norm"), ("silu", "none"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The run-time sources side by side, as in a package."""
    folder = tmp_path_factory.mktemp("conv") / "conv_modules"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, source in FILES.items():
        (folder / f"{name}.py").write_text(Path(source).read_text())
    return SimpleNamespace(**{name: imported(f"conv_modules.{name}", folder.parent) for name in FILES})


class Case:
    """Branches over `T` tokens: float64 inputs, and what the torch form makes of them in any dtype."""

    def __init__(
        self,
        package: SimpleNamespace,
        *,
        steps: tuple[tuple[str, str], ...] = QKV,
        width: int = 4,
        T: int = 17,
        B: int = 2,
        heads: int = 1,
        sizes: tuple[int, ...] = (24, 24, 24),
        borders: list[int] | None = None,
        past: bool = False,
        bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        self.package, self.steps, self.eps, self.sizes = package, steps, eps, sizes[: len(steps)]
        B = 1 if borders else B
        self.cu_seqlens = None if borders is None else torch.tensor(borders)
        self.sequence = (
            None
            if self.cu_seqlens is None
            else torch.searchsorted(self.cu_seqlens[1:].contiguous(), torch.arange(T), right=True)
        )
        N = B if borders is None else len(borders) - 1
        self.given: dict[str, list[Tensor]] = {
            "x": [normal(B, T, heads, size) for size in self.sizes],
            "weight": [normal(heads * size, width) for size in self.sizes],
            "bias": [normal(heads * size) for size in self.sizes] if bias else [],
            "past": [normal(N, width - 1, heads * size) for size in self.sizes] if past else [],
        }
        self.dy = [normal(*x.shape) for x in self.given["x"]]
        if borders is not None:  # nobody asks for what stands behind the last border
            for dy in self.dy:
                dy[:, borders[-1] :] = 0

    def torch_form(self, dtype: torch.dtype) -> dict[str, list[Tensor]]:
        """Results, what is kept, and gradients, step by step."""
        place, fused = self.package.place, self.package.fused_conv
        given = {name: [p.to(dtype).requires_grad_() for p in pieces] for name, pieces in self.given.items()}
        layout = place.Layout(self.cu_seqlens, torch.empty(0), None, 0, False)
        memory = dict(zip("012", given["past"])) if given["past"] else None
        here = place.Place(layout, memory)
        y = []
        for b, (activation, norm) in enumerate(self.steps):
            conv = SimpleNamespace(
                weight=given["weight"][b], bias=given["bias"][b] if given["bias"] else None
            )
            branch = fused.Conv(
                partial(self.package.conv1d.CausalConv1d.forward, conv),
                str(b),
                given["x"][b],
                activation,
                **({norm: self.eps} if norm != "none" else {}),
            )
            y.append(branch.torch_form(here))
        last = list(here.memory.values()) if here.memory is not None else []
        given = {name: pieces for name, pieces in given.items() if pieces}
        leaves = [piece for pieces in given.values() for piece in pieces]
        gradients = iter(torch.autograd.grad(y, leaves, [dy.to(dtype) for dy in self.dy]))
        found = {"y": y, "last": last} | {
            f"d{name}": [next(gradients) for _ in pieces] for name, pieces in given.items()
        }
        return {name: [piece.detach() for piece in pieces] for name, pieces in found.items()}

    def kernels(self, dtype: torch.dtype) -> dict[str, list[Tensor]]:
        """The same by the kernels."""
        module = self.package.conv_kernels
        x, weight, bias, past = ([piece.to(dtype) for piece in pieces] for pieces in self.given.values())
        flat = [piece.flatten(2) for piece in x]
        steps = ", ".join(" ".join(step) for step in self.steps)
        of = module.branches(
            [piece.shape[2] for piece in flat],
            self.sizes,
            steps,
            [self.eps] * len(self.steps),
            weight[0].shape[1],
        )
        given = (flat, weight, bias, past, self.sequence, self.cu_seqlens)
        y = module.launch_conv(*given, of)
        dy = [piece.to(dtype).flatten(2) for piece in self.dy]
        found = dict(zip(("dx", "dweight", "dbias", "dpast"), module.launch_conv_backward(dy, *given, of)))
        found["last"] = module.launch_conv_last(flat, past, self.cu_seqlens, of) if past else []
        found["y"] = y
        return found

    def check(self, dtype: torch.dtype = torch.float32) -> None:
        """The kernels err by no more than the torch form does in the same dtype, twice, and a rounding."""
        want, rough, found = self.torch_form(torch.float64), self.torch_form(dtype), self.kernels(dtype)
        for name, pieces in want.items():
            assert len(found[name]) == len(pieces)
            for b, piece in enumerate(pieces):
                result = found[name][b].double().view_as(piece)
                if self.cu_seqlens is not None and name in ("y", "dx"):
                    stop = int(self.cu_seqlens[-1])
                    assert result.isfinite().all()
                    result, piece = result[:, :stop], piece[:, :stop]
                if not piece.numel():
                    continue
                error = (
                    (rough[name][b].double()[:, : piece.shape[1]] - piece).abs().max()
                    if piece.dim() > 1
                    else (rough[name][b].double() - piece).abs().max()
                )
                allowed = 2 * error + 4 * torch.finfo(dtype).eps * piece.abs().max()
                assert (result - piece).abs().max() <= allowed, (name, b)


@pytest.fixture(autouse=True)
def short_strips(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """More strips in fewer tokens, and less to interpret."""
    monkeypatch.setattr(package.conv_kernels, "FORWARD_STEPS", 4)
    monkeypatch.setattr(package.conv_kernels, "BACKWARD_STEPS", 5)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves out stays NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def nan(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *given, **named: nan(empty(*given, **named)))
    monkeypatch.setattr(torch, "empty_like", lambda *given, **named: nan(empty_like(*given, **named)))


@pytest.mark.parametrize("width", mostly_slow([2, 3, 4, 8], 2))
@pytest.mark.parametrize("T", [1, 3, 15, 17])
def test_widths_and_lengths(package: SimpleNamespace, width: int, T: int) -> None:
    Case(package, width=width, T=T).check()


@pytest.mark.parametrize("T", mostly_slow([64, 130], 2))
def test_several_blocks(package: SimpleNamespace, T: int) -> None:
    Case(package, T=T, B=1, sizes=(128, 128, 128), steps=QKV[1:]).check()


@pytest.mark.parametrize(
    "size", mostly_slow([24, 128], 2) + mostly_slow([64, 96], lambda _: False, "library")
)
def test_head_sizes(package: SimpleNamespace, size: int) -> None:
    Case(package, sizes=(size, 2 * size), steps=QKV[1:], heads=2, T=34, past=True, bias=True).check()


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("width", mostly_slow([4, 2, 8], 3))
@pytest.mark.parametrize("borders", [[0, 0, 1, 1, 4, 30, 30, 61, 61], [0, 3], [0, 0, 0]])
def test_packed(package: SimpleNamespace, borders: list[int], width: int, past: bool) -> None:
    Case(package, T=64, borders=borders, width=width, past=past, steps=QKV[1:]).check()


@pytest.mark.parametrize("T", mostly_slow([1, 2, 3, 40], lambda T: T in (1, 40)))
def test_past(package: SimpleNamespace, T: int) -> None:
    Case(package, T=T, B=3, past=True).check()


@pytest.mark.parametrize(
    ("activation", "norm"),
    mostly_slow(
        itertools.product(["silu", "relu", "gelu", "none"], ["l2norm", "rmsnorm", "none"]),
        lambda steps: steps[0] == "silu" or steps[1] == "none",
    ),
)
def test_steps(package: SimpleNamespace, activation: str, norm: str) -> None:
    Case(package, steps=((activation, norm),), heads=2, bias=True).check()


def test_half(package: SimpleNamespace) -> None:
    Case(package, T=40, past=True, bias=True).check(torch.float16)


def test_pieces_of_a_wider_tensor(package: SimpleNamespace) -> None:
    """x may lie in a wider tensor; nothing is copied."""
    module = package.conv_kernels
    wide = torch.randn(2, 9, 60)
    x = [wide[..., :24], wide[..., 24:56]]
    assert all(
        row.untyped_storage().data_ptr() == wide.data_ptr() for row in module.tokens_of(x, None, None).x
    )
    weight = [torch.randn(24, 4), torch.randn(32, 4)]
    of = module.branches([24, 32], [24, 16], "silu none, none l2norm", [0.0, 1e-6], 4)
    found = module.launch_conv(x, weight, [], [], None, None, of)
    want = module.launch_conv([piece.contiguous() for piece in x], weight, [], [], None, None, of)
    assert all(torch.equal(a, b) for a, b in zip(found, want))


def test_zeros(package: SimpleNamespace) -> None:
    """A head of zeros has a norm of zero: results and gradients are finite."""
    case = Case(package, T=5)
    for x in case.given["x"]:
        x.zero_()
    case.check()


@pytest.mark.slow
def test_bytes(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """x is read once, but for the taps before a strip, and y written once: at most twice what is distinct."""
    monkeypatch.undo()  # strips as long as on a GPU
    module = package.conv_kernels
    case = Case(package, T=256, B=1, sizes=(128, 128, 128))
    with counting() as counted:
        case.kernels(torch.float32)
    forward, backward = counted.launches
    entries, weights = 3 * 256 * 128 * 4, 3 * 128 * 4 * 4
    blocks = 256 // (8 * module.FORWARD_STEPS)
    assert (forward.name, backward.name) == ("conv_forward", "conv_backward")
    assert (forward.distinct_read, forward.distinct_written) == (entries + weights, entries)
    assert forward.requested_read <= entries * (1 + 3 / module.FORWARD_STEPS) + blocks * weights
    assert forward.requested_written == entries
    blocks = 256 // (4 * module.BACKWARD_STEPS)
    assert backward.distinct_read == 2 * entries + weights
    assert backward.distinct_written == backward.requested_written == entries + blocks * weights
    assert backward.requested_read <= entries * (2 + 9 / module.BACKWARD_STEPS) + blocks * weights


@pytest.mark.parametrize("borders", [None, [0, 0, 1, 9, 9]])
def test_nothing_strays(package: SimpleNamespace, borders: list[int] | None) -> None:
    """Every access is inside its argument, and no two programs touch the same bytes, one to write."""
    case = Case(package, T=11, B=3, borders=borders, past=True, bias=True, steps=QKV[1:])
    with counting() as counted:
        case.kernels(torch.float32)
    assert [launch.name for launch in counted.launches] == [
        "conv_forward",
        "conv_backward",
        "conv_past_backward",
        "conv_last",
    ]


def operation(case: Case) -> tuple[Any, ...]:
    """The arguments of the operation."""
    x, weight, bias, past = case.given.values()
    steps = ", ".join(" ".join(step) for step in case.steps)
    leaves = [
        [piece.clone().requires_grad_() for piece in pieces]
        for pieces in ([piece.flatten(2) for piece in x], weight, bias, past)
    ]
    return *leaves, case.sequence, case.cu_seqlens, list(case.sizes), steps, [case.eps] * len(case.steps)


@pytest.mark.parametrize("borders", mostly_slow([([0, 2, 2, 5],), (None,)], 2))
@pytest.mark.parametrize("extra", mostly_slow([True, False], 2))
def test_operation(package: SimpleNamespace, borders: list[int] | None, extra: bool) -> None:
    """torch's own checks of an operation, and its derivative against differences."""
    steps = (("silu", "l2norm"), ("gelu", "rmsnorm"), ("relu", "none"))
    case = Case(package, steps=steps, T=5, sizes=(3, 2, 4), borders=borders, past=extra, bias=extra)
    given = operation(case)
    torch.library.opcheck(package.fused_conv._forward, given)
    if extra:
        detached = ([piece.detach() for piece in pieces] for pieces in (given[0], given[3]))
        torch.library.opcheck(package.fused_conv._last, (*detached, case.cu_seqlens))
    flat = [piece for pieces in given[:4] for piece in pieces]
    counts = [len(pieces) for pieces in given[:4]]

    def run(*pieces: Tensor) -> tuple[Tensor, ...]:
        rest, groups = list(pieces), []
        for count in counts:
            groups.append(rest[:count])
            rest = rest[count:]
        return tuple(package.fused_conv._forward(*groups, *given[4:]))

    assert torch.autograd.gradcheck(run, flat)


@pytest.mark.usefixtures("uncompiled")
def test_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package whose operation runs the kernels gives the logits and the gradients of one without them."""
    spec = LIBRARY["gated_deltanet"]
    build(spec, tmp_path / "gpu", target="h100")
    module = import_folder(tmp_path / "gpu", "gpu_interpreted")
    fused = imported("gpu_interpreted.fused_conv")
    kernels = imported("gpu_interpreted.conv_kernels")
    monkeypatch.setattr(kernels, "FORWARD_STEPS", 4)
    monkeypatch.setattr(kernels, "BACKWARD_STEPS", 5)
    monkeypatch.setattr(fused, "_has_kernel", lambda branch: True)
    for operation in (fused._forward, fused._backward, fused._last):
        operation.register_kernel("cpu")(operation._backend_fns["cuda"])
    torch.manual_seed(0)
    mine, theirs = module.Model(module.Config(n_layers=1)), package_of(spec)
    theirs = theirs.Model(theirs.Config(n_layers=1))
    randomise(theirs)
    mine.load_state_dict(theirs.state_dict())
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(5))
    with counting() as counted:
        logits = mine(tokens)
        logits.square().mean().backward()
    assert [launch.name for launch in counted.launches if "conv" in launch.name] == [
        "conv_forward",
        "conv_backward",
    ]
    want = theirs(tokens)
    want.square().mean().backward()
    torch.testing.assert_close(logits, want)
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        state = mine.init_state(batch_size=2)
        pieces = torch.cat([mine(piece, state=state) for piece in tokens.split([2, 1, 6], 1)], 1)
    torch.testing.assert_close(pieces, want.detach())
