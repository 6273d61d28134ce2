"""Causal convolution and shift against loops over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.operations.assembly import load
from tests.operations.laws import alone, cut, in_pieces, packed

LENGTHS = [5, 0, 1, 9, 2, 0]


def definition(x_TC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    width = weight.shape[1]
    rows = []
    for t in range(len(x_TC)):
        row = torch.zeros_like(x_TC[0]) if bias is None else bias.clone()
        for lag in range(min(width, t + 1)):
            row = row + weight[:, width - 1 - lag] * x_TC[t - lag]
        rows.append(row)
    return torch.stack(rows) if rows else x_TC


def make(package: Any, bias: bool = True, width: int = 4) -> Any:
    return package.conv1d.CausalConv1d(6, width, bias, dtype=torch.float64)


def operation(conv: Any) -> Any:
    return lambda inputs, place: conv(inputs["x"], place, "conv")


def sequences(lengths: list[int]) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(length, 2, 3, dtype=torch.float64)} for length in lengths]


def empty_state(package: Any, rows: int, width: int) -> Any:
    memory = {"conv": torch.zeros(rows, width, 6, dtype=torch.float64)}
    return package.state.State.empty(memory, rows, 64)


@pytest.mark.parametrize(("bias", "width"), [(True, 4), (False, 3), (True, 1)])
def test_dense_and_packed_equal_the_definition(package: Any, bias: bool, width: int) -> None:
    conv, given = make(package, bias, width), sequences(LENGTHS)
    want = [definition(one["x"].flatten(1), conv.weight, conv.bias).view_as(one["x"]) for one in given]
    for got in (alone(package, operation(conv), given), packed(package, operation(conv), given, tail=3)[0]):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pieces", [(4, 3), (1, 2, 4), (1,) * 7, (2, 1, 3, 1)])
@pytest.mark.parametrize("return_state", [False, True])
def test_pieces_equal_the_whole(package: Any, pieces: tuple[int, ...], return_state: bool) -> None:
    conv = make(package)
    inputs = {"x": torch.randn(2, 7, 6, dtype=torch.float64)}
    state = empty_state(package, 2, 3)
    with torch.set_grad_enabled(return_state):
        got, after = in_pieces(package, operation(conv), inputs, state, pieces, return_state)
    want = torch.stack([definition(row, conv.weight, conv.bias) for row in inputs["x"]])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(after.memory["conv"], inputs["x"][:, -3:])
    assert after.length.tolist() == [7, 7] and (after is state) == (not return_state)
    assert return_state or state.longest == 7
    assert not return_state or not state.memory["conv"].any()


def test_packed_continuation(package: Any) -> None:
    conv, given = make(package), sequences(LENGTHS)
    first, second = [2, 0, 0, 4, 1, 0], LENGTHS
    state = empty_state(package, len(given), 3)
    heads = [cut(one, 0, stop) for one, stop in zip(given, first, strict=True)]
    tails = [cut(one, start, stop) for one, start, stop in zip(given, first, second, strict=True)]
    with torch.no_grad():
        one, state = packed(package, operation(conv), heads, state, tail=2)
        two, state = packed(package, operation(conv), tails, state, tail=1)
    want = alone(package, operation(conv), given)
    for a, b, whole in zip(one, two, want, strict=True):
        torch.testing.assert_close(torch.cat([a, b]), whole)
    assert state.length.tolist() == LENGTHS


def test_gradients(package: Any) -> None:
    conv, given = make(package), sequences(LENGTHS)
    state = empty_state(package, len(given), 3)
    past = torch.randn(len(given), 3, 6, dtype=torch.float64, requires_grad=True)
    state.memory["conv"] = past
    row = torch.cat([one["x"] for one in given]).requires_grad_()
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    place = package.state.open_place(
        package.place.packed_layout(cu_seqlens, len(row), state), state, return_state=True
    )
    got = conv(row.unsqueeze(0), place, "conv")[0]
    after = package.state.close_place(place, state)
    parts = row.flatten(1).split(LENGTHS)
    long = [torch.cat([old, part]) for old, part in zip(past, parts, strict=True)]
    want = torch.cat([definition(one, conv.weight, conv.bias)[3:] for one in long])
    want_past = torch.stack([one[-3:] for one in long])
    torch.testing.assert_close(got.flatten(1), want)
    leaves = (row, past, conv.weight, conv.bias)
    weights = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad((got.flatten(1) * weights).sum() + after.memory["conv"].square().sum(), leaves),
        torch.autograd.grad((want * weights).sum() + want_past.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    stateless = package.state.open_place(place.layout)
    (expanded,) = torch.autograd.grad(conv(row.unsqueeze(0), stateless, "conv").sum(), [row])
    (want_expanded,) = torch.autograd.grad(
        sum(definition(part, conv.weight, conv.bias).sum() for part in parts), [row]
    )
    torch.testing.assert_close(expanded, want_expanded)


@pytest.mark.parametrize("packed_call", [False, True])
@pytest.mark.parametrize("with_past", [False, True])
def test_registration(package: Any, packed_call: bool, with_past: bool) -> None:
    """torch's own checks of schema, fake and autograd, on strided inputs as well."""
    x = torch.randn(6, 8, dtype=torch.float64).t()[None].requires_grad_()
    weight, bias = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    past = torch.randn(3 if packed_call else 1, 3, 6, dtype=torch.float64, requires_grad=True)
    cu_seqlens = torch.tensor([0, 3, 3, 7]) if packed_call else None
    arguments = (x, weight.requires_grad_(), bias.requires_grad_(), past if with_past else None, cu_seqlens)
    torch.library.opcheck(package.conv1d._forward, arguments)


def test_low_precision_and_autocast(package: Any) -> None:
    """Sums are float32: the result is the float64 one rounded once, up to float32 noise."""
    conv = make(package).to(torch.bfloat16)
    x = torch.randn(2, 9, 6, dtype=torch.bfloat16)
    place = package.state.open_place(package.place.dense_layout(x))
    got = conv(x, place, "conv")
    exact = torch.stack([definition(row, conv.weight.double(), conv.bias.double()) for row in x.double()])
    assert got.dtype == torch.bfloat16
    # One rounding to 8 bits of mantissa is 2 ** -9 of the value; sums that cancel add float32 noise.
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = conv.float()(x, place, "conv")
    assert mixed.dtype == torch.bfloat16


def test_two_import_paths(package: Any, package_folder: Any) -> None:
    """One package may be imported under two names in a process, and anew under the same one."""
    other = load(package_folder, "assembled_elsewhere")
    again = load(package_folder, "assembled_elsewhere")
    x = torch.randn(1, 3, 6)
    place = package.state.open_place(package.place.dense_layout(x))
    for module in (package.conv1d, other["conv1d"], again["conv1d"]):
        assert module.CausalConv1d(6, 4)(x, place, "conv").shape == x.shape


@pytest.mark.parametrize("steps", [1, 3])
def test_shift(package: Any, steps: int) -> None:
    def shifted(inputs: dict[str, Tensor], place: Any) -> Tensor:
        result: Tensor = package.shift.shift(inputs["x"], place, "conv", steps)
        return result

    given = sequences(LENGTHS)
    want = [torch.cat([torch.zeros(steps, 2, 3).double(), one["x"]])[: len(one["x"])] for one in given]
    for got in (alone(package, shifted, given), packed(package, shifted, given, tail=2)[0]):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)
    x = torch.randn(2, 7, 2, 3, dtype=torch.float64)
    whole = torch.cat([torch.zeros_like(x[:, :steps]), x[:, :-steps]], 1)
    for pieces in ((4, 3), (1,) * 7, (2, 5)):
        memory = {"conv": torch.zeros(2, steps, 2, 3, dtype=torch.float64)}
        with torch.no_grad():
            got_pieces, _ = in_pieces(
                package, shifted, {"x": x}, package.state.State.empty(memory, 2, 64), pieces
            )
        torch.testing.assert_close(got_pieces, whole)
    state = package.state.State.empty(
        {"conv": torch.zeros(6, steps, 2, 3, dtype=torch.float64)}, len(given), 64
    )
    with torch.no_grad():
        heads, state = packed(package, shifted, [cut(one, 0, 2) for one in given], state)
        tails, state = packed(package, shifted, [cut(one, 2, 99) for one in given], state)
    for a, b, other in zip(heads, tails, want, strict=True):
        torch.testing.assert_close(torch.cat([a, b]), other)
