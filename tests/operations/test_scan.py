"""The elementwise scan against its token loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.operations.laws import alone, cut, in_pieces, packed

LENGTHS = [5, 0, 1, 30, 2, 0]


def definition(g: Tensor, b: Tensor, h: Tensor) -> Tensor:
    states = []
    for t in range(len(b)):
        h = torch.exp(g[t]) * h + b[t]
        states.append(h)
    return torch.stack(states) if states else b


def sequence(length: int, *batch: int) -> dict[str, Tensor]:
    g = -torch.randn(*batch, length, 2, 1, dtype=torch.float64).exp()
    g = torch.where(g < -3, -60.0, torch.where(g > -0.2, 0.0, g))  # forgets all, forgets nothing
    return {"g": g, "b": torch.randn(*batch, length, 2, 3, dtype=torch.float64)}


def operation(package: Any) -> Any:
    return lambda inputs, place: package.scan.scan(inputs["b"], inputs["g"], place, "h")


def start(package: Any, rows: int) -> Any:
    return package.state.State.empty({"h": torch.zeros(rows, 2, 3, dtype=torch.float64)}, rows, 64)


def test_dense_and_packed(package: Any) -> None:
    given = [sequence(length) for length in LENGTHS]
    want = [definition(one["g"], one["b"], torch.zeros(2, 3).double()) for one in given]
    for got in (
        alone(package, operation(package), given),
        packed(package, operation(package), given, tail=3)[0],
    ):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pieces", [(4, 3), (1,) * 7, (6, 1)])
@pytest.mark.parametrize("return_state", [False, True])
def test_pieces(package: Any, pieces: tuple[int, ...], return_state: bool) -> None:
    inputs = sequence(7, 2)
    state = start(package, 2)
    with torch.set_grad_enabled(return_state):
        got, after = in_pieces(package, operation(package), inputs, state, pieces, return_state)
    want = torch.stack(
        [definition(inputs["g"][n], inputs["b"][n], torch.zeros(2, 3).double()) for n in range(2)]
    )
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(after.memory["h"], want[:, -1])


def test_packed_continuation(package: Any) -> None:
    given = [sequence(length) for length in LENGTHS]
    first = [2, 0, 0, 17, 1, 0]
    state = start(package, len(given))
    with torch.no_grad():
        heads, state = packed(
            package, operation(package), [cut(one, 0, n) for one, n in zip(given, first, strict=True)], state
        )
        tails, state = packed(
            package,
            operation(package),
            [cut(one, n, 99) for one, n in zip(given, first, strict=True)],
            state,
            tail=2,
        )
    for row, (a, b) in enumerate(zip(heads, tails, strict=True)):
        want = definition(given[row]["g"], given[row]["b"], torch.zeros(2, 3).double())
        torch.testing.assert_close(torch.cat([a, b]), want)
        if len(want):
            torch.testing.assert_close(state.memory["h"][row], want[-1])


@pytest.mark.parametrize("form", ["auto", "step"])
def test_gradients(package: Any, form: str) -> None:
    rows = {name: value.requires_grad_() for name, value in sequence(sum(LENGTHS)).items()}
    before = torch.randn(len(LENGTHS), 2, 3, dtype=torch.float64, requires_grad=True)
    state = package.state.State({"h": before}, torch.zeros(len(LENGTHS), dtype=torch.int64), 64)
    layout = package.place.packed_layout(torch.tensor([0, *LENGTHS]).cumsum(0), sum(LENGTHS), state)
    place = package.state.open_place(layout, state, form=form, return_state=True)
    got = operation(package)({name: value.unsqueeze(0) for name, value in rows.items()}, place)[0]
    after = package.state.close_place(place, state).memory["h"]
    parts, ends = [], []
    for n, (g, b) in enumerate(zip(rows["g"].split(LENGTHS), rows["b"].split(LENGTHS), strict=True)):
        part = definition(g, b, before[n])
        parts.append(part)
        ends.append(part[-1] if len(part) else before[n])
    want, want_after = torch.cat(parts), torch.stack(ends)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(after, want_after)
    weights = torch.randn_like(want)
    leaves = [*rows.values(), before]
    for a, b in zip(
        torch.autograd.grad((got * weights).sum() + after.square().sum(), leaves),
        torch.autograd.grad((want * weights).sum() + want_after.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_registration(package: Any) -> None:
    g = -torch.rand(2, 7, 3, dtype=torch.float64)
    b = torch.randn(3, 7, 2, dtype=torch.float64).permute(2, 1, 0)
    torch.library.opcheck(package.scan._forward, (g.requires_grad_(), b.requires_grad_()))
    torch.library.opcheck(package.scan._forward, (g[:, :1].detach(), b[:, :1].detach()))


def test_low_precision(package: Any) -> None:
    """bf16 in and out, float32 between: one rounding of the output is all there is."""
    inputs = {name: value.bfloat16() for name, value in sequence(50, 2).items()}
    layout = package.place.dense_layout(inputs["b"])
    got = operation(package)(inputs, package.state.open_place(layout))
    for n in range(2):
        want = definition(inputs["g"][n].double(), inputs["b"][n].double(), torch.zeros(2, 3).double())
        torch.testing.assert_close(got[n].double(), want, rtol=2**-8, atol=2**-16)
