"""The elementwise scan, real and complex, against its token loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

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


def test_a_plain_number_as_decay(package: Any) -> None:
    """`scan(x, decay=0)` is a running sum, in each form and precision."""
    x = torch.randn(2, 9, 2, 3)
    for form in ("auto", "step"):
        place = package.state.open_place(package.place.dense_layout(x), form=form)
        torch.testing.assert_close(package.scan.scan(x, 0, place, "h"), x.cumsum(1))
        torch.testing.assert_close(
            package.scan.scan(x.double(), -1, place, "h")[:, 1], (x[:, 0].double() / math.e) + x[:, 1]
        )


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


@pytest.mark.parametrize("form", ["step", "chunk"])
def test_nothing(package: Any, form: str) -> None:
    """A call without tokens, in either form, leaves the state as it was."""
    inputs = complex_sequence(0, 2)
    held = {"h": torch.randn(2, 2, 3).double(), "h.imag": torch.randn(2, 2, 3).double()}
    for run in (operation(package), complex_operation(package)):
        state = package.state.State(dict(held), torch.zeros(2, dtype=torch.int64), 64)
        layout = package.place.dense_layout(inputs["b"], state)
        place = package.state.open_place(layout, state, form=form, return_state=True)
        assert run(inputs, place).shape[:2] == (2, 0)
        after = package.state.close_place(place, state).memory
        assert all(torch.equal(after[key], value) for key, value in held.items())


def complex_definition(given: dict[str, Tensor], h: Tensor) -> Tensor:
    """The loop in torch's own complex numbers: `[T, 2, 3]`, complex."""
    states = []
    for g, angle, re, im in zip(
        given["g"], given["angle"].expand(given["b"].shape), given["b"], given["imag"], strict=True
    ):
        h = torch.exp(torch.complex(g, angle[:, :1])) * h + torch.complex(re, im)
        states.append(h)
    return torch.stack(states) if states else torch.complex(given["b"], given["imag"])


def complex_sequence(length: int, *batch: int) -> dict[str, Tensor]:
    """Decays of one number a row of entries; angles up to thousands of turns, the same along that row."""
    angle = torch.randn(*batch, length, 2, 1, dtype=torch.float64)
    angle = torch.where(angle.abs() > 1, 1e4 * angle, angle)
    imag = torch.randn(*batch, length, 2, 3, dtype=torch.float64)
    return {**sequence(length, *batch), "angle": angle, "imag": imag}


def complex_operation(package: Any) -> Any:
    """The two results side by side along a new last axis."""

    def run(given: dict[str, Tensor], place: Any) -> Tensor:
        found = package.scan.complex_scan(given["b"], given["imag"], given["g"], given["angle"], place, "h")
        return torch.stack(found, -1)

    return run


def complex_start(package: Any, rows: int) -> Any:
    zeros = torch.zeros(rows, 2, 3, dtype=torch.float64)
    return package.state.State.empty({"h": zeros, "h.imag": zeros.clone()}, rows, 64)


NOTHING = torch.zeros(2, 3, dtype=torch.complex128)


def test_complex_dense_and_packed(package: Any) -> None:
    given = [complex_sequence(length) for length in LENGTHS]
    for got in (
        alone(package, complex_operation(package), given),
        packed(package, complex_operation(package), given, tail=3)[0],
    ):
        for found, one in zip(got, given, strict=True):
            torch.testing.assert_close(torch.view_as_complex(found), complex_definition(one, NOTHING))


@pytest.mark.parametrize("pieces", [(4, 3), (1,) * 7, (6, 1)])
@pytest.mark.parametrize("return_state", [False, True])
def test_complex_pieces(package: Any, pieces: tuple[int, ...], return_state: bool) -> None:
    inputs = complex_sequence(7, 2)
    with torch.set_grad_enabled(return_state):
        state = complex_start(package, 2)
        got, after = in_pieces(package, complex_operation(package), inputs, state, pieces, return_state)
    want = torch.stack(
        [complex_definition({key: value[n] for key, value in inputs.items()}, NOTHING) for n in range(2)]
    )
    torch.testing.assert_close(torch.view_as_complex(got.contiguous()), want)
    torch.testing.assert_close(torch.complex(after.memory["h"], after.memory["h.imag"]), want[:, -1])


def test_complex_packed_continuation(package: Any) -> None:
    given = [complex_sequence(length) for length in LENGTHS]
    first = [2, 0, 0, 17, 1, 0]
    pieces = [
        [cut(one, 0, n) for one, n in zip(given, first, strict=True)],
        [cut(one, n, 99) for one, n in zip(given, first, strict=True)],
    ]
    state = complex_start(package, len(given))
    with torch.no_grad():
        heads, state = packed(package, complex_operation(package), pieces[0], state)
        tails, state = packed(package, complex_operation(package), pieces[1], state, tail=2)
    for row, parts in enumerate(zip(heads, tails, strict=True)):
        want = complex_definition(given[row], NOTHING)
        torch.testing.assert_close(torch.view_as_complex(torch.cat(parts).contiguous()), want)
        if len(want):
            after = torch.complex(state.memory["h"][row], state.memory["h.imag"][row])
            torch.testing.assert_close(after, want[-1])


@pytest.mark.parametrize("form", ["auto", "step"])
def test_complex_gradients(package: Any, form: str) -> None:
    """Of every operand and of the state, through a packed row."""
    rows = {name: value.requires_grad_() for name, value in complex_sequence(sum(LENGTHS)).items()}
    before = {
        key: torch.randn(len(LENGTHS), 2, 3, dtype=torch.float64, requires_grad=True)
        for key in ("h", "h.imag")
    }
    state = package.state.State(before, torch.zeros(len(LENGTHS), dtype=torch.int64), 64)
    layout = package.place.packed_layout(torch.tensor([0, *LENGTHS]).cumsum(0), sum(LENGTHS), state)
    place = package.state.open_place(layout, state, form=form, return_state=True)
    got = complex_operation(package)({name: value.unsqueeze(0) for name, value in rows.items()}, place)[0]
    memory = package.state.close_place(place, state).memory
    after = torch.stack([memory["h"], memory["h.imag"]], -1)
    parts, ends, start = [], [], 0
    for n, length in enumerate(LENGTHS):
        held = torch.complex(before["h"][n], before["h.imag"][n])
        part = complex_definition({key: row[start : start + length] for key, row in rows.items()}, held)
        parts.append(torch.view_as_real(part))
        ends.append(torch.view_as_real(part[-1] if length else held))
        start += length
    want, want_after = torch.cat(parts), torch.stack(ends)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(after, want_after)
    weights = torch.randn_like(want)
    leaves = [*rows.values(), *before.values()]
    for a, b in zip(
        torch.autograd.grad((got * weights).sum() + after.square().sum(), leaves),
        torch.autograd.grad((want * weights).sum() + want_after.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_complex_registration(package: Any) -> None:
    """The operation, and its gradient against finite differences."""
    g = -torch.rand(2, 7, 3, dtype=torch.float64)
    given = [g, *(torch.randn(3, 7, 2, dtype=torch.float64).permute(2, 1, 0) for _ in range(3))]
    torch.library.opcheck(package.scan._complex_forward, tuple(value.requires_grad_() for value in given))
    one = tuple(value[:1, :1, :1].detach() for value in given)
    torch.library.opcheck(package.scan._complex_forward, one)
    assert torch.autograd.gradcheck(package.scan.complex_elementwise_scan, given)


def test_complex_without_imaginary_input(package: Any) -> None:
    """No `imag` is an imaginary part of 0; without angles there is no imaginary part."""
    inputs = complex_sequence(9, 2)
    place = package.state.open_place(package.place.dense_layout(inputs["b"]))
    args = inputs["g"], inputs["angle"], place, "h"
    zero = torch.zeros_like(inputs["b"])
    for found, want in zip(
        package.scan.complex_scan(inputs["b"], None, *args),
        package.scan.complex_scan(inputs["b"], zero, *args),
        strict=True,
    ):
        assert torch.equal(found, want)
    args = inputs["g"], torch.zeros((), dtype=torch.float64), place, "h"
    re, im = package.scan.complex_scan(inputs["b"], None, *args)
    torch.testing.assert_close(re, package.scan.scan(inputs["b"], inputs["g"], place, "h"))
    assert not im.any()


@pytest.mark.parametrize("decay", [0.0, -1e-4, -50.0])
@pytest.mark.parametrize("angle", [0.0, 0.3, 3.0e4])
def test_long_sequences(package: Any, decay: float, angle: float) -> None:
    """4096 tokens in float32, for a sum of turned inputs and for a state that forgets at once.

    The factor exp(decay + i angle) is rounded once and used 4096 times, so errors grow with the loop over tokens
    itself: the chunks may err no more than four times as much.
    """
    length = 4096
    b, imag = torch.randn(1, length, 2), torch.randn(1, length, 2)
    g, turn = torch.tensor(decay, requires_grad=True), torch.tensor(angle, requires_grad=True)
    layout = package.place.dense_layout(b)

    def run(form: str) -> Tensor:
        place = package.state.open_place(layout, form=form)
        return torch.stack(package.scan.complex_scan(b, imag, g, turn, place, "h"), -1)

    given = {"g": g, "angle": turn, "b": b[0], "imag": imag[0]}
    given = {key: value.detach().double().expand(length, 2)[:, None] for key, value in given.items()}
    want = torch.view_as_real(complex_definition(given, torch.zeros(1, 2, dtype=torch.complex128)))[:, 0]
    h = run("chunk")
    with torch.no_grad():
        loop = (run("step")[0].double() - want).abs().max()
    rounding = torch.finfo(torch.float32).eps * want.abs().max()
    assert float((h[0].detach().double() - want).abs().max()) <= float(4 * loop + rounding)
    assert all(bool(torch.isfinite(value)) for value in torch.autograd.grad(h.square().sum(), [g, turn]))


def test_complex_low_precision(package: Any) -> None:
    """bf16 in and out, float32 between: one rounding of the output is all there is."""
    inputs = {name: value.bfloat16() for name, value in complex_sequence(50, 2).items()}
    inputs |= {name: inputs[name].float() for name in ("g", "angle")}
    place = package.state.open_place(package.place.dense_layout(inputs["b"]))
    got = complex_operation(package)(inputs, place)
    assert got.dtype == torch.bfloat16
    for n in range(2):
        want = complex_definition({key: value[n].double() for key, value in inputs.items()}, NOTHING)
        torch.testing.assert_close(got[n].double(), torch.view_as_real(want), rtol=2**-8, atol=2**-16)


def test_complex_compiles(package: Any) -> None:
    """One graph for all lengths, packed rows and gradients included."""
    counter = CompileCounterWithBackend("aot_eager")

    def run(b: Tensor, imag: Tensor, g: Tensor, angle: Tensor, borders: Tensor) -> Tensor:
        layout = package.place.packed_layout(borders, b.shape[1])
        place = package.state.open_place(layout)
        re, im = package.scan.complex_scan(b, imag, g, angle, place, "h")
        loss: Tensor = (re * im.cos()).sum()
        return loss

    torch._dynamo.reset()
    quick = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for lengths in ((3, 4), (5, 12), (30, 2), (64, 1), (7, 100)):
        given = complex_sequence(sum(lengths))
        leaves = [given[key].unsqueeze(0).requires_grad_() for key in ("b", "imag", "g", "angle")]
        borders = torch.tensor([0, *lengths]).cumsum(0)
        plain, fast = run(*leaves, borders), quick(*leaves, borders)
        torch.testing.assert_close(plain, fast)
        for a, b in zip(torch.autograd.grad(plain, leaves), torch.autograd.grad(fast, leaves), strict=True):
            torch.testing.assert_close(a, b)
    torch._dynamo.reset()
    assert 1 <= counter.frame_count <= 2
