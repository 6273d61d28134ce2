"""sequential against its definition; the compiler's operation against the loop, with gradients."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.operations.assembly import load
from tests.operations.laws import alone, in_pieces, packed

LENGTHS = [5, 0, 1, 30, 2, 0]
WIDTH = 3


def cell_of(package: Any) -> Any:
    """h_t = tanh(u_t + R h_{t-1}), g_t = w_t - g_{t-1} h_{t-1}; y = h g_{t-1}, with h from 0 and g from 1/2."""

    class Cell(package.sequential.Cell):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.r = nn.Linear(WIDTH, WIDTH)

        def state_entries(self) -> dict[str, Any]:
            entry = package.state.Entry
            return {"h": entry((WIDTH,), torch.float32), "g": entry((WIDTH,), torch.float32, fill=0.5)}

        def forward(self, u: Tensor, w: Tensor, h: Tensor, g: Tensor) -> tuple[Tensor, ...]:
            after = torch.tanh(u + self.r(h))
            return after * g, after, w - g * h

    # Pickle looks a class up by its name.
    Cell.__qualname__, Cell.__module__ = "ExampleCell", __name__
    globals()["ExampleCell"] = Cell
    return Cell().double()


def definition(cell: Any, u: Tensor, w: Tensor) -> Tensor:
    h, g, rows = torch.zeros(WIDTH).to(u), torch.full((WIDTH,), 0.5).to(u), []
    for t in range(len(u)):
        before = h
        h = torch.tanh(u[t] + cell.r.weight @ before + cell.r.bias)
        rows.append(h * g)
        g = w[t] - g * before
    return torch.stack(rows) if rows else u


def sequence(length: int, *batch: int) -> dict[str, Tensor]:
    return {name: torch.randn(*batch, length, WIDTH, dtype=torch.float64) for name in ("u", "w")}


def operation(package: Any, cell: Any) -> Any:
    return lambda inputs, place: package.sequential.sequential(cell, (inputs["u"], inputs["w"]), place)


def start(package: Any, cell: Any, rows: int) -> Any:
    memory = {
        name: entry.tensor(rows, 0, torch.float64, torch.device("cpu"))
        for name, entry in cell.state_entries().items()
    }
    return package.state.State.empty(memory, rows, 64)


def test_dense_and_packed(package: Any) -> None:
    cell = cell_of(package)
    given = [sequence(length) for length in LENGTHS]
    want = [definition(cell, one["u"], one["w"]) for one in given]
    for got in (
        alone(package, operation(package, cell), given),
        packed(package, operation(package, cell), given, tail=3)[0],
    ):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pieces", [(4, 3), (1,) * 7, (6, 1)])
@pytest.mark.parametrize("return_state", [False, True])
def test_pieces(package: Any, pieces: tuple[int, ...], return_state: bool) -> None:
    cell, inputs = cell_of(package), sequence(7, 2)
    state = start(package, cell, 2)
    with torch.set_grad_enabled(return_state):
        got, after = in_pieces(package, operation(package, cell), inputs, state, pieces, return_state)
    want = torch.stack([definition(cell, inputs["u"][n], inputs["w"][n]) for n in range(2)])
    torch.testing.assert_close(got, want)
    assert (after is state) != return_state


def test_packed_rows_go_on(package: Any) -> None:
    """Sequences of a packed row take their own memory, and leave it; an empty one keeps what it had."""
    cell = cell_of(package)
    state = start(package, cell, len(LENGTHS))
    first = [sequence(length) for length in LENGTHS]
    second = [sequence(length) for length in reversed(LENGTHS)]
    with torch.no_grad():
        got = [packed(package, operation(package, cell), part, state)[0] for part in (first, second)]
    for n, (one, other) in enumerate(zip(first, second, strict=True)):
        whole = definition(cell, *(torch.cat([one[name], other[name]]) for name in ("u", "w")))
        torch.testing.assert_close(torch.cat([got[0][n], got[1][n]]), whole)


def walked(
    package: Any, cell: Any, arguments: list[Tensor], lengths: Tensor | None, opaque: bool
) -> list[Tensor]:
    """Results and values after, by the loop or by the compiler's operation."""
    run = package.sequential._operation if opaque else package.sequential.walk
    y, after = run(cell, arguments[:2], arguments[2:4], lengths)
    return [y, *after]


@pytest.mark.parametrize("lengths", [None, (4, 0, 2)])
def test_operation_of_the_compiler_is_the_loop(package: Any, lengths: tuple[int, ...] | None) -> None:
    """Every result and every gradient, those of the weights and of the values before among them."""
    cell = cell_of(package)
    counts = None if lengths is None else torch.tensor(lengths)
    given = [torch.randn(3, 4, WIDTH).double() for _ in range(2)] + [
        torch.randn(3, 1, WIDTH).double() for _ in range(2)
    ]
    given = [value.requires_grad_() for value in given]
    wanted = [*given, *cell.parameters()]
    found = []
    for opaque in (False, True):
        results = walked(package, cell, given, counts, opaque)
        slopes = [
            torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).double() for value in results
        ]
        found.append((results, torch.autograd.grad(results, wanted, slopes)))
    for one, other in zip(found[0][0] + list(found[0][1]), found[1][0] + list(found[1][1]), strict=True):
        assert torch.equal(one, other)


def test_gradients(package: Any) -> None:
    cell = cell_of(package)
    given = [torch.randn(2, 3, WIDTH).double() for _ in range(2)] + [
        torch.randn(2, 1, WIDTH).double() for _ in range(2)
    ]
    lengths = torch.tensor([3, 1])
    inputs = [value.requires_grad_() for value in given]
    for counts in (None, lengths):
        assert torch.autograd.gradcheck(lambda *a: walked(package, cell, list(a), counts, True), inputs)  # noqa: B023


def test_operation_is_well_formed(package: Any) -> None:
    cell = cell_of(package)
    call = getattr(torch.ops, package.sequential._NAMESPACE).walk.default
    weights = list(cell.parameters())
    for length in (1, 4):
        u, w = (torch.randn(2, length, WIDTH).double().requires_grad_() for _ in range(2))
        before = [torch.randn(2, 1, WIDTH).double().requires_grad_() for _ in range(2)]
        torch.library.opcheck(call, (cell.number, [u, w], before, None, weights))
        torch.library.opcheck(call, (cell.number, [u, w], before, torch.tensor([1, 0]), weights))


def test_a_result_that_no_weight_reaches(package: Any) -> None:
    """Only what has a gradient is differentiated; the others get zeros."""
    cell = cell_of(package)
    given = [torch.randn(2, 4, WIDTH).double().requires_grad_() for _ in range(2)]
    before = [torch.randn(2, 1, WIDTH).double().requires_grad_() for _ in range(2)]
    after = walked(package, cell, [*given, *before], torch.tensor([0, 0]), True)[1:]
    slopes = torch.autograd.grad(sum(value.sum() for value in after), [*given, *before, cell.r.weight])
    assert not any(slope.any() for slope in (*slopes[:2], slopes[4])) and all(
        (s == 1).all() for s in slopes[2:4]
    )


def test_copies_are_cells_of_their_own(package: Any) -> None:
    """A copy outlives the original, with weights of its own."""
    cell = cell_of(package)
    copies = [copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))]
    numbers = {cell.number, *(one.number for one in copies)}
    assert len(numbers) == 3
    u, w = (torch.randn(1, 4, WIDTH).double() for _ in range(2))
    before = [torch.zeros(1, 1, WIDTH).double(), torch.full((1, 1, WIDTH), 0.5).double()]
    expected = walked(package, cell, [u, w, *before], None, False)[0].detach()
    del cell
    gc.collect()
    for one in copies:
        assert torch.equal(walked(package, one, [u, w, *before], None, True)[0], expected)
        with torch.no_grad():
            one.r.weight.zero_()
        assert not torch.equal(walked(package, one, [u, w, *before], None, True)[0], expected)


def test_result_has_the_dtype_of_the_first_input(package: Any) -> None:
    cell = cell_of(package).float().to(torch.bfloat16)
    assert cell.r.weight.dtype == torch.float32
    inputs = {name: value.bfloat16() for name, value in sequence(6, 2).items()}
    place = package.place.Place(package.place.dense_layout(inputs["u"]))
    got = operation(package, cell)(inputs, place)
    assert got.dtype == torch.bfloat16
    want = torch.stack([definition(cell, inputs["u"][n].float(), inputs["w"][n].float()) for n in range(2)])
    torch.testing.assert_close(got, want.bfloat16(), rtol=1e-2, atol=1e-2)


def test_imported_twice(package_folder: Any, package: Any) -> None:
    """Each import has operations and cells of its own, also under one name."""
    again = load(package_folder, "assembled_package_again")["sequential"]
    assert again._NAMESPACE != package.sequential._NAMESPACE
