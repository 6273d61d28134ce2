"""One recurrence of a built package, forward and backward, beside the chunked form that transformers has of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TOKENS = 2048
HEADS = 16
WIDTH = 128  # of keys and of values
MODULE = "head_decay_delta"  # the class that the peer has: a decay a head, the delta rule
PEER = "transformers.models.qwen3_next.modeling_qwen3_next"

Step = Callable[["torch.Tensor", object], object]


def recurrence_steps(package: str) -> tuple[Step, Step | None] | None:
    """Two functions of the same work, ours and the peer's: outputs and all five gradients, float32.

    `package` is the imported package's name. None where it has no recurrence of this class; no peer where
    transformers is not installed. Both take the arguments of a step of a model and do not look at them.
    """
    import torch

    try:
        ours = getattr(importlib.import_module(f"{package}.{MODULE}"), MODULE)
    except ModuleNotFoundError:
        return None
    place = importlib.import_module(f"{package}.place")
    inputs = _inputs()
    gradient = torch.randn(1, TOKENS, HEADS, WIDTH, generator=torch.Generator().manual_seed(2))

    def stepping(forward: Callable[[], torch.Tensor]) -> Step:
        def step(tokens: torch.Tensor, cache: object) -> object:
            out = forward()
            return out, torch.autograd.grad(out, inputs, gradient)

        return step

    def our_forward() -> torch.Tensor:
        here = place.Place(place.dense_layout(gradient))
        out: torch.Tensor = ours(*inputs, scale=WIDTH**-0.5, place=here, key="o")
        return out

    try:
        peer = importlib.import_module(PEER).torch_chunk_gated_delta_rule
    except ImportError:
        return stepping(our_forward), None
    return stepping(our_forward), stepping(lambda: peer(*inputs)[0])


def _inputs() -> list[torch.Tensor]:
    """q, k, v, log decay and beta; q and k of length 1, as models give them."""
    import torch

    draw = torch.Generator().manual_seed(1)
    shape = 1, TOKENS, HEADS
    q, k, v = (torch.randn(*shape, WIDTH, generator=draw) for _ in range(3))
    decay, beta = -0.5 * torch.rand(shape, generator=draw), torch.rand(shape, generator=draw)
    q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    return [x.requires_grad_() for x in (q, k, v, decay, beta)]
