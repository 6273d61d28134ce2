"""Parts that are evaluated token by token and read their own values of the token before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.language.check import distance, exact, inputs, linear, spec_of, worst_way
from tests.support.imports import imported
from tests.support.packages import package, random_model

HEADS, DIM = 2, 8
PARAMS = {
    "n_heads": {"type": "int", "default": HEADS},
    "head_dim": {"type": "int", "default": DIM},
}
SHAPE = "[n_heads, head_dim]"


def gated() -> dict[str, Any]:
    """Two values are carried, one from minus infinity; the equation `last` is read by the next token only."""
    return spec_of(
        "gated_cell",
        {
            "u": f"linear(x, {SHAPE})",
            "w": f"linear(x, {SHAPE})",
            "h": "sequential(cell, u, w)",
            "y": "linear(h, d_model)",
        },
        PARAMS,
        parts={
            "cell": {
                "inputs": {"u": SHAPE, "w": SHAPE},
                "body": {
                    "h": f"tanh(u + linear(before(h, {SHAPE}), head_dim, over=head_dim, per=n_heads) * keep)",
                    "top": f"max(before(top, {SHAPE}, start=-inf), w)",
                    "last": "w * w",
                    "keep": f"exp(before(last, {SHAPE}, start=1/2) - top ** 2)",
                    "y": f"h + top * before(last, {SHAPE}, start=1/2)",
                },
            }
        },
    )


def loop(mixer: nn.Module, x: Tensor) -> Tensor:
    u, w = linear(mixer, "u", x, HEADS, DIM), linear(mixer, "w", x, HEADS, DIM)
    matrix = mixer.get_parameter("cell.h.weight")  # a matrix [out, in] for each head
    h, top, last = torch.zeros_like(u[0]), torch.full_like(u[0], float("-inf")), torch.full_like(u[0], 0.5)
    results = []
    for t in range(len(x)):
        top = torch.where(w[t] > top, w[t], top)
        keep = torch.exp(last - top**2)
        h = torch.tanh(u[t] + (matrix @ h[..., None])[..., 0] * keep)
        results.append(h + top * last)
        last = w[t] ** 2
    return nn.functional.linear(torch.stack(results).flatten(1), mixer.get_parameter("y.weight"))


def test_definition() -> None:
    assert distance(gated(), loop, 23) < 1e-14


def test_every_way() -> None:
    worst, name, count = worst_way(gated())
    assert worst < 1e-12, name
    assert count == 16


def test_memory_is_float32_and_starts_where_it_says() -> None:
    state = package(gated()).Model(dtype=torch.bfloat16).init_state(3)
    cell = {name.rpartition(".")[2]: value for name, value in state.memory.items()}
    assert {name: float(value[0, 0, 0]) for name, value in cell.items()} == {
        "h": 0.0,
        "top": float("-inf"),
        "last": 0.5,
    }
    assert all(value.shape == (3, HEADS, DIM) and value.dtype == torch.float32 for value in cell.values())


def test_weights_stay_float32() -> None:
    """The memory would lose what is added to it in small steps, and so would matrices that meet it."""
    model = random_model(gated()).to(torch.bfloat16)
    kinds = {name: value.dtype for name, value in model.named_parameters()}
    assert kinds.pop("layers.0.mixer.cell.h.weight") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
    assert model(torch.arange(9)[None]).dtype == torch.bfloat16


def test_autocast_leaves_the_part_alone() -> None:
    """Operations of the part run in float32, whatever surrounds them."""
    model = random_model(gated())
    seen: list[torch.dtype] = []
    cell = model.get_submodule("layers.0.mixer.cell")
    cell.register_forward_hook(lambda _, given, out: seen.extend(value.dtype for value in (*given, *out)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.arange(5)[None])
    assert set(seen) == {torch.float32}


def test_no_tokens() -> None:
    model = exact(gated())
    assert model(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 64)
    empty = model(torch.zeros(1, 3, dtype=torch.long), cu_seqlens=torch.tensor([0, 0, 0]))
    assert empty.isfinite().all()


@pytest.mark.slow
def test_truth_values_are_remembered_as_numbers() -> None:
    """Nothing here has a derivative; the compiler's operation gives zeros."""
    spec = spec_of(
        "switch",
        {"u": f"linear(x, {SHAPE})", "h": "sequential(cell, u)", "y": "linear(h + u, d_model)"},
        PARAMS,
        parts={
            "cell": {
                "inputs": {"u": SHAPE},
                "body": {"on": f"(u > 0) != before(on, {SHAPE})", "y": "where(on, 1, -1)"},
            }
        },
    )

    def turned(mixer: nn.Module, x: Tensor) -> Tensor:
        u = linear(mixer, "u", x, HEADS, DIM)
        odd = (u > 0).cumsum(0) % 2 == 1
        y = torch.where(odd, 1.0, -1.0) + u
        return nn.functional.linear(y.flatten(1), mixer.get_parameter("y.weight"))

    assert distance(spec, turned, 23) < 1e-14
    worst, name, _ = worst_way(spec, (5, 0, 9))
    assert worst < 1e-12, name
    torch._dynamo.reset()
    model = random_model(spec)
    loss = torch.compile(model.loss, fullgraph=True, dynamic=True, backend="aot_eager")
    rows = torch.arange(18).view(2, 9)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(loss(rows).total, parameters),
        torch.autograd.grad(model.loss(rows).total, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


def test_a_part_in_two_places() -> None:
    """Each call has weights and a memory of its own."""
    spec = gated()
    mixer = spec["mixers"]["own"]
    mixer["body"]["h"] = "sequential(cell, u, w) + sequential(cell, w, u, name=second)"
    model = exact(spec)
    names = {name for name, _ in model.named_parameters()}
    assert {f"layers.0.mixer.{name}.h.weight" for name in ("cell", "second")} <= names
    memory = model.init_state(1).memory
    assert {"layers.0.mixer.cell.h", "layers.0.mixer.second.h"} <= set(memory)
    worst, name, _ = worst_way(spec, (5, 0, 9))
    assert worst < 1e-12, name


@pytest.mark.slow
def test_compiled_with_gradients() -> None:
    """One graph for all lengths; a packed row is another."""
    torch._dynamo.reset()
    model = random_model(gated())
    counter = CompileCounterWithBackend("aot_eager")
    loss = torch.compile(model.loss, fullgraph=True, dynamic=True, backend=counter)
    parameters = list(model.parameters())
    for length in (5, 9, 17, 30):
        rows = torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(length))
        plain, quick = model.loss(rows).total, loss(rows).total
        torch.testing.assert_close(quick, plain)
        for one, other in zip(
            torch.autograd.grad(quick, parameters), torch.autograd.grad(plain, parameters), strict=True
        ):
            limit = 16 * torch.finfo(torch.float32).eps * float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=limit)
    assert counter.frame_count <= 2
    borders = torch.tensor([0, 4, 4, 11])
    row = torch.arange(13)[None]
    torch.testing.assert_close(loss(row, cu_seqlens=borders).total, model.loss(row, cu_seqlens=borders).total)
    torch._dynamo.reset()


def test_order_matters() -> None:
    """The loop sees earlier tokens only, and all of them."""
    model = exact(gated())
    at = imported(f"{package(gated()).__name__}.place")
    x = inputs(12).requires_grad_()
    y = model.layers[0].mixer(x, at.Place(at.dense_layout(x)))
    (slope,) = torch.autograd.grad(y[0, 7].sum(), x)
    reached = slope[0].abs().amax(-1) > 0
    assert reached[:8].all() and not reached[8:].any()
