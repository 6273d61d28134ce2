"""A hundred thousand decode steps in float32: the state stays where float64 has it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from archc.tiles.kind import RecurrenceKind

STEPS, H, K, V = 100_000, 2, 16, 16
LIMIT = 1e-4  # of the state's own norm, the target for every class that decays
KINDS = {
    "head": RecurrenceKind("head"),
    "key": RecurrenceKind("key"),
    "value": RecurrenceKind("value"),
    "elementwise": RecurrenceKind("elementwise"),
    "head delta": RecurrenceKind("head", "delta"),
    "key delta": RecurrenceKind("key", "delta"),
    "key pair": RecurrenceKind("key", "pair", "previous"),
}
SLOW = ("key pair",)  # `make library` has the others as well


def draws(kind: RecurrenceKind, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Operands of `count` tokens, float32: slow and fast decays, unit keys, beta up to 1.99."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, 1, H, *shape, generator=generator)

    decay_shape = {"head": (), "key": (K,), "value": (V,), "elementwise": (K, V)}[kind.decay]
    rate = torch.tensor([0.001, 0.3]).view(1, 1, H, *([1] * len(decay_shape)))
    found = {
        "q": normal(K),
        "k": torch.nn.functional.normalize(normal(K), dim=-1),
        "v": normal(V),
        "decay": -rate * normal(*decay_shape).abs(),
    }
    if kind.erase == "delta":
        found["beta"] = 1.99 * torch.rand(count, 1, H, generator=generator)
    if kind.erase == "pair":
        direction = torch.nn.functional.normalize(normal(K), dim=-1)
        found["erase_write"] = direction * torch.rand(count, 1, H, 1, generator=generator)
        found["erase_read"] = -direction
    return found


def definition(kind: RecurrenceKind, S: Tensor, x: dict[str, Tensor]) -> Tensor:
    """One step of the recurrence in float64, written from its definition. `S [1, H, K, V]`."""
    shapes = {"head": (1, H, 1, 1), "key": (1, H, K, 1), "value": (1, H, 1, V), "elementwise": (1, H, K, V)}
    keep = x["decay"].exp().view(shapes[kind.decay])
    k, v = x["k"][..., :, None], x["v"][..., None, :]
    if kind.erase == "pair":
        seen = (S * x["erase_read"][..., :, None]).sum(2, keepdim=True)
        return keep * S + x["erase_write"][..., :, None] * seen + k * v
    S = keep * S
    if kind.erase == "delta":
        return S + x["beta"][..., None, None] * k * (v - (S * k).sum(2, keepdim=True))
    return S + k * v


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.library) for name in KINDS],
)
def test_state_after_a_hundred_thousand_steps(
    name: str, load: Callable[[RecurrenceKind], ModuleType]
) -> None:
    kind = KINDS[name]
    module = load(kind)
    generator = torch.Generator().manual_seed(7)
    state, exact = torch.zeros(1, H, K, V), torch.zeros(1, H, K, V, dtype=torch.float64)
    worst = 0.0
    with torch.no_grad():
        for _ in range(STEPS // 1000):
            operands = draws(kind, 1000, generator)
            doubled = {key: value.double() for key, value in operands.items()}
            for t in range(1000):
                module.decode(*(value[t] for value in operands.values()), state, 1.0)
                exact = definition(kind, exact, {key: value[t] for key, value in doubled.items()})
            error = (state.double() - exact).flatten(2).norm(dim=2) / exact.flatten(2).norm(dim=2)
            worst = max(worst, float(error.max()))
    assert worst == worst and worst <= LIMIT, f"relative error of the state {worst:.1e}"
    assert worst > 0, "float32 rounds: an error of exactly 0 means that nothing was compared"
