"""How an operation is timed: over whole sequences, forward and backward, and token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from archc.kernels.bench import timing
from archc.kernels.bench.operations import OurSide, PeerSide, Shape, Timed, raw_inputs, spec_of
from archc.kernels.bench.session import Session
from archc.kernels.bench.timing import Result, Side, compare, copies_for

if TYPE_CHECKING:
    import torch


def run_operation(session: Session, result: Result, timed: Timed, shape: Shape, back: bool) -> None:
    """The operation over whole sequences, beside the peer's and softmax attention."""
    import torch

    name = str(spec_of(timed, shape.H, shape.D)["name"])
    if not session.package(name, spec_of(timed, shape.H, shape.D), result):
        return
    bytes_of_inputs = 2 * shape.B * shape.T * shape.H * (3 * shape.D)
    copies = copies_for(session.device, bytes_of_inputs)
    raw = raw_inputs(timed, shape, session.device, session.dtype, copies)
    gradients = [torch.randn_like(given["v"]) for given in raw]
    for given in raw:
        for x in given.values():
            x.requires_grad_(back)
    ours = OurSide(name, session.device)

    def run_of(call: Any, pick: Callable[[Any], torch.Tensor]) -> Callable[[int], torch.Tensor]:
        def run(number: int) -> torch.Tensor:
            given = raw[number]
            with torch.set_grad_enabled(back):
                o = pick(call(given))
                if back:
                    gradient = gradients[number].view_as(o)
                    torch.autograd.grad(o, call.leaves(given), gradient, allow_unused=True)
            return o.detach()

        return run

    sides = [Side("ours", run_of(ours, lambda found: found))]
    sides += session.peer(result, "fla", lambda: run_of(PeerSide(timed), lambda found: found[0]))
    sides.append(Side("sdpa", _softmax(raw, gradients, back)))
    compare(result, sides, copies, session.clock, session.rounds)
    session.shares(result, shape.B * shape.T, *_work(timed, shape, back))
    _note_differences(result, sides)


def _softmax(
    raw: Sequence[dict[str, torch.Tensor]], gradients: Sequence[torch.Tensor], back: bool
) -> Callable[[int], torch.Tensor]:
    """Causal softmax attention of the same q, k and v."""
    import torch

    def run(number: int) -> torch.Tensor:
        q, k, v = (raw[number][name].transpose(1, 2) for name in ("q", "k", "v"))
        with torch.set_grad_enabled(back):
            o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            if back:
                leaves = [raw[number][name] for name in ("q", "k", "v")]
                torch.autograd.grad(o, leaves, gradients[number].transpose(1, 2))
        return o.detach()

    return run


def _note_differences(result: Result, sides: Sequence[Side]) -> None:
    """How far the output of a peer that computes the same is from ours."""
    if "ours" not in result.sides:
        return
    ours: Any = sides[0].run(0)
    for side in sides:
        if side.name == "fla" and side.name in result.sides:
            theirs: Any = side.run(0)
            off = (theirs.reshape(ours.shape).float() - ours.float()).abs().max()
            result.difference[side.name] = float(off / ours.float().abs().max())


def _work(timed: Timed, shape: Shape, back: bool) -> tuple[float, float]:
    """The least bytes and the FLOP of the chunk form."""
    from archc.kernels.bytes import minimum
    from archc.tiles.costs import count
    from archc.tiles.kind import RecurrenceKind

    kind = RecurrenceKind(timed.decay, timed.erase)  # type: ignore[arg-type]
    least, costs = minimum(kind, shape.D, shape.D), count(kind, shape.D, shape.D)
    each = shape.B * shape.T * shape.H
    moved = least.forward + (least.backward if back else 0)
    return each * moved, each * (costs.forward.flops + (costs.backward.flops if back else 0))


def run_decode(session: Session, result: Result, timed: Timed, shape: Shape, graph: bool) -> None:
    """One token with the state in place; the peer writes a new state and goes on with it."""
    import torch

    name = str(spec_of(timed, shape.H, shape.D)["name"])
    if not session.package(name, spec_of(timed, shape.H, shape.D), result):
        return
    state_bytes = 4 * shape.B * shape.H * shape.D**2
    copies = copies_for(session.device, state_bytes)
    raw = raw_inputs(timed, shape, session.device, session.dtype, copies)
    states = [
        torch.zeros(shape.B, shape.H, shape.D, shape.D, device=session.device) for _ in range(2 * copies)
    ]
    ours, theirs = OurSide(name, session.device), list(states[copies:])

    def our_step(number: int) -> Callable[[], object]:
        return torch.no_grad()(lambda: ours(raw[number], states[number]))

    def their_step(number: int, call: PeerSide) -> Callable[[], object]:
        def step() -> object:
            o, theirs[number] = call(raw[number], theirs[number])  # type: ignore[assignment]
            return o

        return torch.no_grad()(step)

    def run_of(steps: Sequence[Callable[[], object]]) -> Callable[[int], object]:
        steps = [timing.captured(step) for step in steps] if graph else steps
        return lambda number: steps[number]()

    def our_run() -> Callable[[int], object]:
        return run_of([our_step(n) for n in range(copies)])

    def their_run() -> Callable[[int], object]:
        call = PeerSide(timed, recurrent=True)
        return run_of([their_step(n, call) for n in range(copies)])

    sides = session.peer(result, "ours", our_run)
    if not sides:
        return
    sides += session.peer(result, "fla", their_run)
    compare(result, sides, copies, session.clock, session.rounds)
    session.shares(result, shape.B, least=2.0 * state_bytes)
