"""The softmax over the tokens so far against its definition: every token's logarithm of a sum, formed anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.operations.laws import alone, cut, in_pieces, packed

LENGTHS = [5, 0, 1, 30, 2, 0]
EMPTY = float("-inf")


def definition(x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """w, decay and the last z of `x [T, ...]`, the sum at each token formed anew from all tokens before it."""
    before = x.new_full(x.shape[1:], EMPTY) if before is None else before
    weights, decays, z = [], [], before
    for t in range(len(x)):
        earlier, z = z, torch.cat([before[None], x[: t + 1]]).logsumexp(0)
        weights.append(torch.exp(x[t] - z))
        decays.append(torch.where(earlier == EMPTY, 0, earlier - z))
    if not weights:
        return x, x, z
    return torch.stack(weights), torch.stack(decays), z


def both(x: Tensor, before: Tensor | None = None) -> Tensor:
    """w and decay side by side, as the operation under test gives them."""
    return torch.stack(definition(x, before)[:2], -1)


def sequence(length: int, *batch: int) -> dict[str, Tensor]:
    return {"x": 8 * torch.randn(*batch, length, 2, 3, dtype=torch.float64)}


def operation(package: Any) -> Any:
    return lambda inputs, place: torch.stack(
        package.running_softmax.running_softmax(inputs["x"], place, "z"), -1
    )


def start(package: Any, rows: int) -> Any:
    return package.state.State.empty({"z": torch.full((rows, 2, 3), EMPTY).double()}, rows, 64)


def test_dense_and_packed(package: Any) -> None:
    given = [sequence(length) for length in LENGTHS]
    want = [both(one["x"]) for one in given]
    for got in (
        alone(package, operation(package), given),
        packed(package, operation(package), given, tail=3)[0],
    ):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


def test_first_token(package: Any) -> None:
    """Its state is empty: nothing is kept or forgotten, and it has all the weight."""
    x = torch.tensor([[[-80.0, 0.0, 80.0]]])
    layout = package.place.dense_layout(x)
    w, decay = package.running_softmax.running_softmax(x, package.state.open_place(layout), "z")
    assert torch.equal(w, torch.ones(1, 1, 3)) and torch.equal(decay, torch.zeros(1, 1, 3))


@pytest.mark.parametrize("form", ["auto", "step"])
def test_no_tokens(package: Any, form: str) -> None:
    x, state = torch.randn(2, 0, 2, 3).double(), start(package, 2)
    with torch.no_grad():
        place = package.state.open_place(package.place.dense_layout(x, state), state, form=form)
        w, decay = package.running_softmax.running_softmax(x, place, "z")
    assert w.shape == decay.shape == x.shape
    assert torch.equal(state.memory["z"], start(package, 2).memory["z"])


@pytest.mark.parametrize("pieces", [(4, 3), (1,) * 7, (6, 1)])
@pytest.mark.parametrize("return_state", [False, True])
def test_pieces(package: Any, pieces: tuple[int, ...], return_state: bool) -> None:
    inputs = sequence(7, 2)
    with torch.set_grad_enabled(return_state):
        got, after = in_pieces(package, operation(package), inputs, start(package, 2), pieces, return_state)
    torch.testing.assert_close(got, torch.stack([both(x) for x in inputs["x"]]))
    torch.testing.assert_close(after.memory["z"], torch.stack([definition(x)[2] for x in inputs["x"]]))


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
        torch.testing.assert_close(torch.cat([a, b]), both(given[row]["x"]))
        torch.testing.assert_close(state.memory["z"][row], definition(given[row]["x"])[2])


@pytest.mark.parametrize("form", ["auto", "step"])
@pytest.mark.parametrize("fresh", [False, True])
def test_gradients(package: Any, form: str, fresh: bool) -> None:
    x = sequence(sum(LENGTHS))["x"].requires_grad_()
    before = torch.randn(len(LENGTHS), 2, 3, dtype=torch.float64)
    before = (torch.full_like(before, EMPTY) if fresh else before).requires_grad_()
    state = package.state.State({"z": before}, torch.zeros(len(LENGTHS), dtype=torch.int64), 64)
    layout = package.place.packed_layout(torch.tensor([0, *LENGTHS]).cumsum(0), sum(LENGTHS), state)
    place = package.state.open_place(layout, state, form=form, return_state=True)
    got = operation(package)({"x": x.unsqueeze(0)}, place)[0]
    after = package.state.close_place(place, state).memory["z"]
    weights = torch.randn_like(got)
    ends = torch.tensor(LENGTHS) > 0
    total = (got * weights).sum() + (after[ends] ** 2).sum()
    found = torch.autograd.grad(total, [x, before])
    pieces = x.split(LENGTHS)
    each = [definition(piece, before[n]) for n, piece in enumerate(pieces) if len(piece)]
    want = torch.cat([torch.stack(one[:2], -1) for one in each])
    torch.testing.assert_close(got, want)
    total = (want * weights).sum() + (torch.stack([one[2] for one in each]) ** 2).sum()
    expected = torch.autograd.grad(total, [x, before])
    torch.testing.assert_close(found[0], expected[0])
    if fresh:
        assert torch.equal(
            found[1], torch.zeros_like(before)
        )  # exp(-inf) changes nothing; autograd's loop has NaN
    else:
        torch.testing.assert_close(found[1], expected[1])


def test_derivatives_by_differences(package: Any) -> None:
    x = sequence(11, 2)["x"].flatten(2).requires_grad_()
    first = torch.arange(11) % 6 == 0
    assert torch.autograd.gradcheck(lambda x: package.running_softmax.running_logsumexp(x, first), (x,))


def test_registration(package: Any) -> None:
    x = torch.randn(3, 7, 2, dtype=torch.float64).permute(2, 1, 0)
    first = torch.arange(7) == 0
    torch.library.opcheck(package.running_softmax._forward, (x.requires_grad_(), first))
    torch.library.opcheck(package.running_softmax._forward, (x[:, :1].detach(), first[:1]))
    torch.library.opcheck(package.running_softmax._forward, (x[:, :0].detach(), first[:0]))


@pytest.mark.parametrize("form", ["auto", "step"])
def test_extremes(package: Any, form: str) -> None:
    """Entries of +-80 and runs of one value: finite in float32, and the mean that follows is one of the values."""
    pattern = torch.tensor([-80.0, -80, 80, -80, 80, 80, 0, 80, -80, 0]).repeat(20)
    x = torch.stack([pattern, pattern.roll(2), torch.full((200,), 80.0), torch.zeros(200)], -1)[None]
    x.requires_grad_()
    place = package.state.open_place(package.place.dense_layout(x), form=form)
    w, decay = package.running_softmax.running_softmax(x, place, "z")
    want_w, want_decay, _ = definition(x[0].detach().double())
    found_w, found_decay = w[0].detach(), decay[0].detach()
    # What float32 can do: z is as precise as its size, up to 86, and so are its differences with x.
    limit = 128 * 32 * torch.finfo(torch.float32).eps
    assert float((found_w - want_w).abs().max()) < limit
    assert bool((decay <= 0).all()) and float((found_decay - want_decay).abs().max()) < limit
    torch.testing.assert_close(
        w[:, 1:] + decay[:, 1:].exp(), torch.ones_like(w[:, 1:])
    )  # a convex combination
    (slope,) = torch.autograd.grad((w * torch.randn_like(w)).sum() + decay.sum(), x)
    assert bool(slope.isfinite().all())


def test_slow_decays_keep_their_digits(package: Any) -> None:
    """After n equal tokens log(n / (n + 1)) is kept, not the difference of two rounded logarithms."""
    x = torch.full((1, 3000, 1), 50.0)
    place = package.state.open_place(package.place.dense_layout(x))
    w, decay = package.running_softmax.running_softmax(x, place, "z")
    n = torch.arange(2000, 3000).double()
    assert float((decay[0, 2000:, 0] / torch.log1p(-1 / (n + 1)) - 1).abs().max()) < 1e-3
    assert float((w[0, 2000:, 0] * (n + 1) - 1).abs().max()) < 1e-3


def test_low_precision(package: Any) -> None:
    """bf16 in: the weight is rounded once, the decay is float32."""
    x = sequence(50, 2)["x"].bfloat16()
    place = package.state.open_place(package.place.dense_layout(x))
    w, decay = package.running_softmax.running_softmax(x, place, "z")
    assert (w.dtype, decay.dtype) == (torch.bfloat16, torch.float32)
    for n in range(2):
        want_w, want_decay, _ = definition(x[n].double())
        torch.testing.assert_close(w[n].double(), want_w, rtol=2**-8, atol=2**-16)
        torch.testing.assert_close(decay[n].double(), want_decay, rtol=2**-14, atol=2**-16)


def test_one_graph_for_all_lengths(package: Any) -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def loss(x: Tensor) -> Tensor:
        place = package.state.open_place(package.place.dense_layout(x))
        w, decay = package.running_softmax.running_softmax(x, place, "z")
        return (w * decay).sum()

    quick = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for length in (7, 16, 33, 50):
        x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
        slopes = [torch.autograd.grad(function(x), x)[0] for function in (loss, quick)]
        torch.testing.assert_close(slopes[1], slopes[0])
    assert counter.frame_count == 1
