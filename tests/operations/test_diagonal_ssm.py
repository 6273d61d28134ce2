"""The diagonal state space against its recurrence in complex numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.operations.laws import alone, cut, in_pieces, packed

LENGTHS = [5, 0, 1, 130, 2, 0, 64]
STATES = 4
SHAPES = {"own": (2, 3, STATES), "shared by the last axis": (2, 1, STATES), "shared by all": (STATES,)}
Weights = dict[str, Tensor]


def definition(x: Tensor, weights: Weights, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`x [T, 2, 3]`, `h [2, 3, S]` complex: the outputs, and the state after the last token."""
    zero = torch.zeros(())
    a = torch.complex(*torch.broadcast_tensors(weights["decay"], weights.get("angle", zero).to(x)))
    C = torch.complex(*torch.broadcast_tensors(weights["read"], weights.get("read_imag", zero).to(x)))
    h = x.new_zeros(2, 3, STATES) + 0j if h is None else h
    outputs = [torch.zeros_like(x[:0])]
    for token in x:
        h = torch.exp(a) * h + token[..., None]
        outputs.append((C * h).sum(-1).real[None])
    return torch.cat(outputs), h


@pytest.fixture(params=[(shape, kind) for shape in SHAPES for kind in ("real", "complex", "real read")])
def weights(request: pytest.FixtureRequest) -> Weights:
    name, kind = request.param
    found = {part: torch.randn(SHAPES[name], dtype=torch.float64) for part in ("decay", "read")}
    found["decay"] = -torch.exp(found["decay"] - 2)
    found["decay"][..., 0] = 0.0  # forgets nothing
    found["decay"][..., 1] = -60.0  # forgets all
    if kind != "real":
        found["angle"] = 3 * torch.randn(STATES, dtype=torch.float64)
    if kind == "complex":
        found["read_imag"] = torch.randn(SHAPES[name], dtype=torch.float64)
    return found


def parts(weights: Weights) -> int:
    return 2 if "angle" in weights else 1


def as_pairs(h: Tensor, weights: Weights) -> Tensor:
    return torch.view_as_real(h)[..., : parts(weights)]


def sequence(length: int, *batch: int) -> dict[str, Tensor]:
    return {"x": torch.randn(*batch, length, 2, 3, dtype=torch.float64)}


def operation(package: Any, weights: Weights) -> Any:
    return lambda inputs, place: package.diagonal_ssm.diagonal_ssm(inputs["x"], place, "h", **weights)


def start(package: Any, weights: Weights, rows: int) -> Any:
    memory = {"h": torch.zeros(rows, 2, 3, STATES, parts(weights), dtype=torch.float64)}
    return package.state.State.empty(memory, rows, 256)


def test_dense_and_packed(package: Any, weights: Weights) -> None:
    given = [sequence(length) for length in LENGTHS]
    want = [definition(one["x"], weights)[0] for one in given]
    for got in (
        alone(package, operation(package, weights), given),
        packed(package, operation(package, weights), given, tail=3)[0],
    ):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pieces", [(66, 4), (1,) * 7 + (63,), (6, 64), (64, 1, 5)])
@pytest.mark.parametrize("return_state", [False, True])
def test_pieces(package: Any, weights: Weights, pieces: tuple[int, ...], return_state: bool) -> None:
    inputs = sequence(70, 2)
    state = start(package, weights, 2)
    with torch.set_grad_enabled(return_state):
        got, after = in_pieces(package, operation(package, weights), inputs, state, pieces, return_state)
    for n in range(2):
        y, h = definition(inputs["x"][n], weights)
        torch.testing.assert_close(got[n], y)
        torch.testing.assert_close(after.memory["h"][n], as_pairs(h, weights))


def test_packed_continuation(package: Any, weights: Weights) -> None:
    given = [sequence(length) for length in LENGTHS]
    first, run = [2, 0, 0, 67, 1, 0, 64], operation(package, weights)
    state = start(package, weights, len(given))
    with torch.no_grad():
        heads = [cut(one, 0, n) for one, n in zip(given, first, strict=True)]
        tails = [cut(one, n, 999) for one, n in zip(given, first, strict=True)]
        heads, state = packed(package, run, heads, state)
        tails, state = packed(package, run, tails, state, tail=2)
        nothing, state = packed(package, run, [sequence(0) for _ in given], state)
    for row, (a, b) in enumerate(zip(heads, tails, strict=True)):
        y, h = definition(given[row]["x"], weights)
        torch.testing.assert_close(torch.cat([a, b]), y)
        torch.testing.assert_close(state.memory["h"][row], as_pairs(h, weights))


@pytest.mark.parametrize("form", ["auto", "step", "chunk"])
@pytest.mark.parametrize("lengths", [LENGTHS, [67], [1]], ids=["packed", "dense", "one token"])
def test_gradients(package: Any, weights: Weights, form: str, lengths: list[int]) -> None:
    """Of x, of the weights, and of the state before; through y and through the state after."""
    rows = len(lengths)
    x = torch.randn(sum(lengths), 2, 3, dtype=torch.float64, requires_grad=True)
    before = torch.randn(rows, 2, 3, STATES, parts(weights), dtype=torch.float64, requires_grad=True)
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    state = package.state.State({"h": before}, torch.zeros(rows, dtype=torch.int64), 256)
    if rows == 1:
        layout = package.place.dense_layout(x.unsqueeze(0), state)
    else:
        layout = package.place.packed_layout(torch.tensor([0, *lengths]).cumsum(0), sum(lengths), state)
    place = package.state.open_place(layout, state, form=form, return_state=True)
    got = operation(package, weights)({"x": x.unsqueeze(0)}, place)[0]
    after = package.state.close_place(place, state).memory["h"]
    pair = torch.nn.functional.pad(before, (0, 2 - parts(weights))).contiguous()
    found = [
        definition(part, weights, torch.view_as_complex(pair)[n]) for n, part in enumerate(x.split(lengths))
    ]
    want = torch.cat([y for y, _ in found])
    want_after = torch.stack([as_pairs(h, weights) for _, h in found])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(after, want_after)
    mix, mix_after = torch.randn_like(want), torch.randn_like(want_after)
    leaves = [x, before, *weights.values()]
    for a, b in zip(
        torch.autograd.grad((got * mix).sum() + (after * mix_after).sum(), leaves),
        torch.autograd.grad((want * mix).sum() + (want_after * mix_after).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("parts", [2, 1])
@pytest.mark.slow
def test_registration(package: Any, parts: int) -> None:
    """Both operations, with inputs that are not contiguous; and their gradients by differences."""
    a = torch.randn(2, parts, 3, dtype=torch.float64).transpose(1, 2)
    a = (a * 0.1 - torch.tensor([0.2, 0])[:parts]).requires_grad_()
    g = torch.randn(2, 2, parts, 3, 2, dtype=torch.float64).permute(0, 1, 4, 3, 2).requires_grad_()
    x = torch.randn(2, 2, 2, 70, dtype=torch.float64).permute(1, 3, 0, 2).requires_grad_()
    ssm = package.diagonal_ssm
    torch.library.opcheck(ssm._expand, (g, a, 70))
    torch.library.opcheck(ssm._collect, (x, a))
    torch.library.opcheck(ssm._expand, (g.detach(), a.detach(), 1))
    torch.library.opcheck(ssm._collect, (x[:, :0].detach(), a.detach()))
    assert torch.autograd.gradcheck(lambda *given: ssm.expand(*given, 70), (g, a))
    assert torch.autograd.gradcheck(ssm.collect, (x, a))


def test_phases_of_long_lags(package: Any) -> None:
    """A state that turns fast and forgets nothing: in float32 as exact after 4,000 tokens as the angle itself."""
    weights = {
        "decay": torch.zeros(1),
        "angle": torch.tensor([19.7]),
        "read": torch.ones(1),
    }
    x = torch.zeros(1, 4000, 1)
    x[0, 0] = 1
    place = package.state.open_place(package.place.dense_layout(x))
    got = package.diagonal_ssm.diagonal_ssm(x, place, "h", **weights)[0, :, 0]
    want = torch.cos(torch.arange(4000).double() * weights["angle"].double())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=16 * torch.finfo(torch.float32).eps)


def test_low_precision_and_autocast(package: Any) -> None:
    """bf16 in and out, float32 between: one rounding of the output is all there is."""
    weights = {
        "decay": -torch.rand(2, 3, STATES),
        "angle": torch.randn(STATES),
        "read": torch.randn(2, 3, STATES),
    }
    inputs = {"x": sequence(90, 2)["x"].bfloat16()}
    state = start(package, weights, 2)
    state.memory = {"h": state.memory["h"].float()}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        got, after = in_pieces(package, operation(package, weights), inputs, state, (70, 1, 19))
    assert got.dtype == torch.bfloat16 and after.memory["h"].dtype == torch.float32
    exact = {name: value.double() for name, value in weights.items()}
    for n in range(2):
        want, h = definition(inputs["x"][n].double(), exact)
        torch.testing.assert_close(got[n].double(), want, rtol=2**-8, atol=2**-16)
        torch.testing.assert_close(after.memory["h"][n].double(), as_pairs(h, exact), rtol=1e-4, atol=1e-4)
