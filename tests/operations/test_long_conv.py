"""Convolutions as long as the sequence against the sum over lags."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.operations.laws import alone, cut, in_pieces, packed

LENGTHS = [5, 0, 1, 30, 2, 0, 12]
LAGS = 12  # some sequences are longer: what lies further back does not count


def definition(x: Tensor, kernel: Tensor, before: Tensor | None = None) -> Tensor:
    """`x [T, 2, 3]`, `kernel [2, 3, L]`, tokens before the first: y_t = sum_j kernel[.., t - j] x_j."""
    start = 0 if before is None else len(before)
    every = x if before is None else torch.cat([before, x])
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for lag in range(min(kernel.shape[-1], start + t + 1)):
            y[t] += kernel[..., lag] * every[start + t - lag]
    return y


@pytest.fixture(params=["own", "shared by the last axis", "shared by all"])
def kernel(request: pytest.FixtureRequest) -> Tensor:
    shape = {"own": (2, 3, LAGS), "shared by the last axis": (2, 1, LAGS), "shared by all": (LAGS,)}
    return torch.randn(shape[request.param], dtype=torch.float64)


def whole(kernel: Tensor) -> Tensor:
    return kernel.expand(2, 3, LAGS)


def sequence(length: int, *batch: int) -> dict[str, Tensor]:
    return {"x": torch.randn(*batch, length, 2, 3, dtype=torch.float64)}


def operation(package: Any, kernel: Tensor) -> Any:
    return lambda inputs, place: package.long_conv.long_conv(inputs["x"], kernel, place, "h")


def start(package: Any, rows: int, max_length: int = 64) -> Any:
    slots = min(LAGS, max_length)
    memory = {"h": torch.zeros(rows, slots, 2, 3, dtype=torch.float64)}
    return package.state.State.empty(memory, rows, max_length)


def test_dense_and_packed(package: Any, kernel: Tensor) -> None:
    given = [sequence(length) for length in LENGTHS]
    want = [definition(one["x"], whole(kernel)) for one in given]
    for got in (
        alone(package, operation(package, kernel), given),
        packed(package, operation(package, kernel), given, tail=3)[0],
    ):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pieces", [(20, 9), (1,) * 29, (14, 1, 14), (3, 4, 1, 1, 20)])
@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("max_length", [29, 64])
def test_pieces(
    package: Any, kernel: Tensor, pieces: tuple[int, ...], return_state: bool, max_length: int
) -> None:
    inputs = sequence(29, 2)
    state = start(package, 2, max_length)
    with torch.set_grad_enabled(return_state):
        got, _ = in_pieces(package, operation(package, kernel), inputs, state, pieces, return_state)
    want = torch.stack([definition(inputs["x"][n], whole(kernel)) for n in range(2)])
    torch.testing.assert_close(got, want)


def test_a_ring_shorter_than_the_kernel(package: Any, kernel: Tensor) -> None:
    """A state of a few tokens only: they are all there are."""
    inputs = sequence(7, 2)
    with torch.no_grad():
        got, _ = in_pieces(package, operation(package, kernel), inputs, start(package, 2, 7), (3, 1, 2, 1))
    want = torch.stack([definition(inputs["x"][n], whole(kernel)) for n in range(2)])
    torch.testing.assert_close(got, want)


def test_packed_continuation_and_single_tokens(package: Any, kernel: Tensor) -> None:
    """Rows of different lengths go on packed, then by one token each."""
    given = [sequence(length + 2) for length in LENGTHS]
    first, run = [2, 0, 0, 17, 1, 0, 13], operation(package, kernel)
    state = start(package, len(given))
    with torch.no_grad():
        heads, state = packed(
            package, run, [cut(one, 0, n) for one, n in zip(given, first, strict=True)], state
        )
        middle = [
            cut(one, n, length) if length > n else cut(one, 0, 0)
            for one, n, length in zip(given, first, LENGTHS, strict=True)
        ]
        tails, state = packed(package, run, middle, state, tail=2)
        counts = [max(n, length) for n, length in zip(first, LENGTHS, strict=True)]
        ends = []
        for step in range(2):
            token = torch.stack(
                [one["x"][n + step : n + step + 1] if n + step < len(one["x"]) else one["x"][-1:]
                 for one, n in zip(given, counts, strict=True)]
            )  # fmt: skip
            layout = package.place.dense_layout(token, state)
            place = package.state.open_place(layout, state)
            ends.append(run({"x": token}, place))
            state = package.state.close_place(place, state)
    for row, one in enumerate(given):
        got = torch.cat([heads[row], tails[row], ends[0][row], ends[1][row]])
        want = definition(one["x"][: len(got)], whole(kernel))
        torch.testing.assert_close(got[: len(want)], want)


@pytest.mark.parametrize("form", ["auto", "step"])
@pytest.mark.parametrize("dense", [False, True])
def test_gradients(package: Any, kernel: Tensor, form: str, dense: bool) -> None:
    """Of x, of the kernel, and of the tokens that a state holds."""
    rows, before = (1 if dense else len(LENGTHS)), 4
    lengths = [sum(LENGTHS)] if dense else LENGTHS
    x = torch.randn(sum(LENGTHS), 2, 3, dtype=torch.float64, requires_grad=True)
    ring = torch.zeros(rows, LAGS, 2, 3, dtype=torch.float64)
    ring[:, :before] = torch.randn(rows, before, 2, 3, dtype=torch.float64)
    ring.requires_grad_()
    kernel = kernel.requires_grad_()
    length = torch.full((rows,), before)
    state = package.state.State({"h": ring}, length, 64, None, before)
    if dense:
        layout = package.place.dense_layout(x.unsqueeze(0), state)
    else:
        layout = package.place.packed_layout(torch.tensor([0, *LENGTHS]).cumsum(0), sum(LENGTHS), state)
    place = package.state.open_place(layout, state, form=form, return_state=True)
    got = operation(package, kernel)({"x": x.unsqueeze(0)}, place)[0]
    want = torch.cat(
        [definition(part, whole(kernel), ring[n, :before]) for n, part in enumerate(x.split(lengths))]
    )
    torch.testing.assert_close(got, want)
    weights = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), [x, kernel, ring]),
        torch.autograd.grad((want * weights).sum(), [x, kernel, ring]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradients_of_single_tokens(package: Any) -> None:
    kernel = torch.randn(2, 3, LAGS, dtype=torch.float64, requires_grad=True)
    inputs = {"x": torch.randn(2, 9, 2, 3, dtype=torch.float64, requires_grad=True)}
    got, _ = in_pieces(
        package, operation(package, kernel), inputs, start(package, 2), (4, 1, 1, 3), return_state=True
    )
    want = torch.stack([definition(inputs["x"][n], kernel) for n in range(2)])
    weights = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), [inputs["x"], kernel]),
        torch.autograd.grad((want * weights).sum(), [inputs["x"], kernel]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_registration(package: Any) -> None:
    x = torch.randn(3, 7, 2, 2, dtype=torch.float64).permute(1, 0, 2, 3)[:2].requires_grad_()
    kernel = torch.randn(5, 2, dtype=torch.float64).t().requires_grad_()
    past = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(package.long_conv._forward, (x, kernel, None, None))
    torch.library.opcheck(package.long_conv._forward, (x, kernel, past, None))
    borders = torch.tensor([0, 0, 4])
    row = torch.randn(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(package.long_conv._forward, (row, kernel, past, borders))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 300])
def test_sizes_of_transforms(package: Any, length: int) -> None:
    found = package.long_conv._fast_length(length)
    assert length <= found <= max(2, 1.34 * length)
    while found % 2 == 0:
        found //= 2
    assert found in (1, 3, 5, 9, 15)


def test_low_precision_and_autocast(package: Any) -> None:
    """bf16 in and out, float32 between: one rounding of the output is all there is, and of the inputs."""
    inputs = {"x": sequence(50, 2)["x"].bfloat16()}
    kernel = torch.randn(2, 3, LAGS)
    layout = package.place.dense_layout(inputs["x"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = operation(package, kernel)(inputs, package.state.open_place(layout))
    assert got.dtype == torch.bfloat16
    for n in range(2):
        want = definition(inputs["x"][n].double(), kernel.double())
        torch.testing.assert_close(got[n].double(), want, rtol=2**-8, atol=2**-16)
