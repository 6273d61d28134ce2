"""How a whole model and its first layer are timed: a training step, decoding, a layer forward and backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from archc.kernels.bench import timing
from archc.kernels.bench.models import (
    PEERS,
    PROMPT,
    our_decoding,
    peer_decoding,
    peer_layer,
    peer_model,
    training_step,
)
from archc.kernels.bench.session import MODEL, Session
from archc.kernels.bench.timing import Result, Side, compare

if TYPE_CHECKING:
    import torch


def _random_tokens(session: Session, model: Any, batch: int, length: int) -> torch.Tensor:
    """`[batch, length]`."""
    import torch

    return torch.randint(0, model.config.vocab_size, (batch, length), device=session.device)


def run_training(session: Session, result: Result, batch: int, tokens: int) -> None:
    """Loss, backward and the optimizer's step, beside peers of the same sizes."""
    from archc.pipeline import cost

    model = session.model(result)
    if model is None:
        return
    batches = [_random_tokens(session, model, batch, tokens) for _ in range(2)]
    ours = training_step(model, lambda rows: model.loss(rows).total)
    sides = [Side("ours", lambda number: ours(batches[number]))]
    for name in PEERS:

        def make(name: str = name) -> Callable[[int], object]:
            peer = peer_model(name, model, session.device, session.dtype)
            step = training_step(peer, lambda rows: peer(input_ids=rows, labels=rows).loss)
            return lambda number: step(batches[number])

        sides += session.peer(result, name, make)
    compare(result, sides, 2, session.clock, session.rounds)
    report = cost(session.spec, batch_size=batch, tokens=tokens)
    session.shares(result, batch * tokens, flops=report.training_flops)


def run_decoding(session: Session, result: Result, batch: int, graph: bool) -> None:
    """One token for each sequence of a batch, as calls or as a CUDA graph."""
    from archc.pipeline import cost

    model = session.model(result)
    if model is None:
        return
    model.eval()
    model.prepare_decode()
    prompt = min(PROMPT, model.config.context // 2)
    tokens = _random_tokens(session, model, batch, prompt)
    room = 8 + 100 * (session.rounds + 1)
    step = our_decoding(model, tokens, room)
    if graph:
        step = timing.captured(step)
    sides = [Side("ours", lambda number: step())]
    for name in () if graph else PEERS:  # the peers' caches grow, which a graph cannot

        def make(name: str = name) -> Callable[[int], object]:
            peer = peer_model(name, model, session.device, session.dtype).eval()
            theirs = peer_decoding(peer, tokens)
            return lambda number: theirs()

        sides += session.peer(result, name, make)
    compare(result, sides, 1, session.clock, session.rounds)
    report = cost(session.spec, batch_size=batch, tokens=prompt)
    least = report.parameter_bytes + 2 * report.state_bytes + report.cache_bytes
    session.shares(result, batch, least, report.decode_flops)


def run_layer(session: Session, result: Result, batch: int, tokens: int) -> None:
    """The first mixer, forward and backward, beside the peer's of its sizes."""
    import torch

    model = session.model(result)
    if model is None:
        return
    place = importlib.import_module(f"{MODEL}.place")
    mixer, width = model.layers[0].mixer, model.config.d_model
    shape = batch, tokens, width
    inputs = [
        torch.randn(shape, device=session.device, dtype=session.dtype).requires_grad_() for _ in range(2)
    ]
    gradient = torch.randn(shape, device=session.device, dtype=session.dtype)

    def run_of(layer: Any, call: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int], object]:
        leaves = list(layer.parameters())
        return lambda number: torch.autograd.grad(
            call(inputs[number]), [inputs[number], *leaves], gradient, allow_unused=True
        )

    def make() -> Callable[[int], object]:
        peer = peer_layer(mixer, width, session.device, session.dtype)
        return run_of(peer, lambda x: peer(x)[0])

    sides = [Side("ours", run_of(mixer, lambda x: mixer(x, place.Place(place.dense_layout(x)))))]
    sides += session.peer(result, "fla", make)
    compare(result, sides, 2, session.clock, session.rounds)
    session.shares(result, batch * tokens)
