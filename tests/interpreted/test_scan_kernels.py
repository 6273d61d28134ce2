"""The elementwise scan, interpreted, against its loop over tokens in float64."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from archc.kernels.counting.counter import counting
from tests.interpreted.modules import assert_near, gradients, load, poisoned
from tests.support.slow import mostly_slow

FULL = (8, 5)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The modules, with the kernels in the place of what runs on a CPU, in smaller steps: the interpreter is slow."""
    found = load(
        tmp_path_factory.mktemp("scan") / "scan_package",
        "fused_scan",
        "scan_kernels",
        "scan",
        "place",
        "state",
    )
    fused = found.fused_scan
    for operation in (fused._forward, fused._backward):
        operation.register_kernel("cpu")(operation._init_fn)
    with pytest.MonkeyPatch.context() as patch, poisoned():
        patch.setattr(fused, "_has_kernel", lambda x: True)
        patch.setattr(found.scan_kernels, "BLOCK_T", 16)
        patch.setattr(found.scan_kernels, "BLOCK_C", 8)
        yield found


class Case:
    """Inputs, the decay in a smaller shape that expands to theirs, and what is made of them."""

    def __init__(
        self,
        package: SimpleNamespace,
        T: int,
        axes: tuple[int, ...] = (20,),
        decay: tuple[int, ...] | None = None,
        borders: list[int] | None = None,
        state: bool = False,
        batch: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        draw = torch.Generator().manual_seed(0)
        self.package, self.axes, self.T = package, axes, T
        self.B = 1 if borders else batch
        self.cu_seqlens = None if borders is None else torch.tensor(borders)
        self.N = self.B if borders is None else len(borders) - 1
        g = -torch.randn(decay or (self.B, T, *axes), generator=draw).exp()
        g = torch.where(g < -3, -50.0, torch.where(g > -0.3, 0.0, g))  # forgets all, forgets nothing
        x = torch.randn(self.B, T, *axes, generator=draw).to(dtype)
        self.inputs = [x, g, *([torch.randn(self.N, *axes, generator=draw)] if state else [])]
        self.slopes = [
            torch.randn(x.shape, generator=draw).to(dtype),
            torch.randn(self.N, *axes, generator=draw),
        ]
        self.state = state

    def kernels(self) -> list[Tensor]:
        """h, the state after each sequence, and the gradients."""
        inputs = [x.detach().requires_grad_() for x in self.inputs]
        x, g, *before = inputs
        fused = self.package.fused_scan
        h, after = fused._forward(
            x.flatten(2),
            fused._two_axes(g.expand(x.shape)),
            before[0].flatten(1) if before else None,
            self.cu_seqlens,
        )
        outputs = [h.view(x.shape), after.view(self.N, *self.axes)]
        return [*outputs, *gradients(outputs, inputs, self.slopes)]

    def loop(self, dtype: torch.dtype) -> list[Tensor]:
        """The definition; zeros at tokens that belong to no sequence, which count nothing."""
        inputs = [x.detach().to(dtype).requires_grad_() for x in self.inputs]
        x, g, *before = inputs
        g = g.expand(x.shape)
        rows, after = [], []
        if self.cu_seqlens is None:
            spans = [(b, 0, self.T) for b in range(self.B)]
        else:
            borders = self.cu_seqlens.tolist()
            spans = [(0, start, stop) for start, stop in zip(borders, borders[1:])]
        for n, (b, start, stop) in enumerate(spans):
            h = before[0][n] if before else x.new_zeros(self.axes)
            for t in range(start, stop):
                h = torch.exp(g[b, t]) * h + x[b, t]
                rows.append(h)
            after.append(h)
        rows += [x.new_zeros(self.axes)] * (self.B * self.T - len(rows))
        h_all = torch.stack(rows).view(x.shape) if rows else x * 0
        outputs = [h_all + 0 * x, torch.stack(after) + 0 * x.sum()]
        return [out.detach() for out in outputs] + gradients(outputs, inputs, self.slopes)

    def check(self) -> None:
        """Kernels against float64."""
        assert_near(self.kernels(), self.loop(torch.float32), self.loop(torch.float64))


@pytest.mark.parametrize("T", mostly_slow([0, 1, 15, 17, 63, 65], lambda T: T in (0, 17)))
@pytest.mark.parametrize("state", mostly_slow([True, False], 2))
def test_lengths(package: SimpleNamespace, T: int, state: bool) -> None:
    Case(package, T, state=state).check()


@pytest.mark.slow
def test_many_steps(package: SimpleNamespace) -> None:
    Case(package, 130, (9,), state=True, batch=1).check()
    Case(package, 130, (9,), borders=[0, 60, 60, 61, 127], state=True).check()


@pytest.mark.parametrize("state", mostly_slow([True, False], 2))
@pytest.mark.parametrize(
    "borders", mostly_slow([([0, 0, 5, 5, 38],), ([0, 16, 32],), ([0, 0],), ([0, 39],)], 4), ids=str
)
def test_packed(package: SimpleNamespace, borders: list[int], state: bool) -> None:
    """Empty sequences, a border where a step ends, none with tokens at all; tokens after the last one."""
    Case(package, 39, borders=borders, state=state).check()


@pytest.mark.parametrize(
    "decay",
    mostly_slow([(s,) for s in [(), (5,), (8, 1), (8, 5), (1, 19, 8, 5), (2, 19, 8, 1), (2, 19, 1, 5)]], 4),
    ids=str,
)
def test_smaller_decays(package: SimpleNamespace, decay: tuple[int, ...]) -> None:
    """A decay that is the same for channels, tokens or sequences is read as it is stored."""
    case = Case(package, 19, FULL, decay)
    case.check()
    expanded = case.inputs[1].expand(case.inputs[0].shape)
    assert case.package.fused_scan._two_axes(expanded).data_ptr() == expanded.data_ptr()


def test_three_runs_of_axes(package: SimpleNamespace) -> None:
    """What two axes cannot say is copied."""
    Case(package, 5, (2, 3, 4), (2, 1, 4)).check()


def test_float16(package: SimpleNamespace) -> None:
    """The state is float32 all the same; of h the gradient of the decay sees what was written."""
    case = Case(package, 33, state=True, dtype=torch.float16)
    got, single, exact = case.kernels(), case.loop(torch.float32), case.loop(torch.float64)
    assert_near(got, single, exact, torch.float16)
    kept = [k for k in range(5) if k != 3]
    assert_near(*([results[k] for k in kept] for results in (got, single, exact)))


def test_what_forgets_all(package: SimpleNamespace) -> None:
    """Minus infinity is a decay too, and its gradient is 0."""
    case = Case(package, 19, state=True)
    case.inputs[1][:, ::3] = float("-inf")
    results = case.kernels()
    assert_near(results[:3], case.loop(torch.float32)[:3], case.loop(torch.float64)[:3])
    assert (results[3][:, ::3] == 0).all() and torch.isfinite(results[3]).all()


def test_tokens_after_the_last_sequence(package: SimpleNamespace) -> None:
    """Whatever stands there, results are zero there and gradients are too."""
    case = Case(package, 20, borders=[0, 7, 11], state=True)
    case.inputs[0][:, 11:] = 3e38
    h, _, dx, dg, _ = case.kernels()
    assert all((value[:, 11:] == 0).all() for value in (h, dx, dg))


@pytest.mark.parametrize("decay", mostly_slow([-0.5, 0], 2))
def test_in_a_place(package: SimpleNamespace, decay: float) -> None:
    """`scan` as packages call it: a decay that is a number, whole, in pieces, one token at a time, returned states."""
    x = torch.randn(2, 7, 3, 4)

    def run(function: object, pieces: list[int], grad: bool) -> tuple[Tensor, Tensor]:
        state = package.state.State.empty({"h": torch.zeros(2, 3, 4)}, 2, 64)
        outputs = []
        with torch.set_grad_enabled(grad):
            for piece in x.split(pieces, 1):
                layout = package.place.dense_layout(piece, state)
                place = package.state.open_place(layout, state, return_state=grad)
                outputs.append(function(piece, decay, place, "h"))  # type: ignore[operator]
                state = package.state.close_place(place, state)
        return torch.cat(outputs, 1), state.memory["h"]

    want = run(package.scan.scan, [7], False)
    for pieces, grad in (([7], False), ([4, 3], False), ([1] * 7, False), ([4, 3], True)):
        for mine, theirs in zip(run(package.fused_scan.scan, pieces, grad), want, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_bytes(package: SimpleNamespace) -> None:
    """Each entry once, the decay and h of the backward twice at most; nothing beyond h and the decay is kept."""
    case = Case(package, 48, (16,))
    with counting() as counted:
        case.kernels()
    forward, backward = counted.launches
    entries, states = 4 * 2 * 48 * 16, 4 * 2 * 16
    assert (forward.requested_read, forward.requested_written) == (2 * entries, entries + states)
    assert backward.distinct_read <= 3 * entries + states
    assert backward.requested_read <= 4 * entries + states
    assert backward.requested_written == 2 * entries


@pytest.mark.parametrize("packed", mostly_slow([True, False], 2))
def test_operation(package: SimpleNamespace, packed: bool) -> None:
    batch, cu_seqlens = (1, torch.tensor([0, 2, 2, 7])) if packed else (2, None)
    x = torch.randn(batch, 9, 8, requires_grad=True)
    g = (-torch.rand(batch, 9, 1, 8)).requires_grad_()
    before = torch.randn(3 if packed else 2, 8, requires_grad=True)
    torch.library.opcheck(package.fused_scan._forward, (x, g, before, cu_seqlens))
    torch.library.opcheck(package.fused_scan._forward, (x, g, None, cu_seqlens))
