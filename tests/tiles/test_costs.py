"""Counted costs against the products that the emitted form runs, and against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from archc.tiles.costs import count
from archc.tiles.kind import RecurrenceKind
from tests.tiles.cases import label, make

BATCHED = [
    RecurrenceKind(decay, erase)  # type: ignore[arg-type]
    for decay in ("none", "head")
    for erase in ("none", "delta", "pair")
]


class Products(TorchDispatchMode):
    """Counts the FLOPs of batched matrix products, in place and into given storage as well."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("bmm", "baddbmm", "baddbmm_"):
            left, right = args[:2] if name == "bmm" else args[1:3]
            self.flops += 2 * left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", BATCHED, ids=label)
def test_flops_are_those_of_the_emitted_form(
    kind: RecurrenceKind, load: Callable[[RecurrenceKind], ModuleType]
) -> None:
    """The counter sees matrix products only; rows, decays and the inverse are less than a tenth beside them here."""
    K = V = 64
    case = make(kind, 256, batch=1, heads=(1, 1, 1), K=K, V=V, dtype=torch.float32)
    tensors = [*case.tensors.values(), case.memory["s"]]
    costs = count(kind, K, V)
    module = load(kind)
    with torch.no_grad(), Products() as ahead:
        o, final, *kept = module.chunk_forward(*tensors, None, 1.0)
    with torch.no_grad(), Products() as behind:
        module.chunk_backward(o, final, *tensors[:-1], None, *kept, 1.0)
    assert ahead.flops / 256 == pytest.approx(costs.forward.flops, rel=0.1)
    assert behind.flops / 256 == pytest.approx(costs.backward.flops, rel=0.1)


def test_gated_delta_by_hand() -> None:
    """K = V = 128, chunks of 64: 2 score products, solve, apply, and 3 products with the state."""
    costs = count(RecurrenceKind("head", "delta"), 128, 128)
    products = 4 * 2 * 64 * 128 + 3 * 2 * 128 * 128
    assert costs.forward.flops == pytest.approx(products, rel=0.05)
    assert costs.forward.bytes == 2 * (3 * 128 + 1) + 4 + 2 * 128
    assert costs.decode.bytes == costs.forward.bytes + 2 * 4 * 128 * 128
    assert costs.decode.exponentials == 1
    assert costs.state_bytes == 4 * 128 * 128


def test_channel_decay_pays_in_exponentials() -> None:
    head = count(RecurrenceKind("head", "delta"), 128, 128).forward.exponentials
    key = count(RecurrenceKind("key", "delta"), 128, 128).forward.exponentials
    assert key > 20 * head
