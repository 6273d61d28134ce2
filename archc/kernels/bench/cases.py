"""The cases of a bench: how large they are, and their order, the most telling first since a run may end early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from archc.kernels.bench.model_runs import run_decoding, run_layer, run_training
from archc.kernels.bench.operation_runs import run_decode, run_operation
from archc.kernels.bench.operations import TIMED, Shape, Timed
from archc.kernels.bench.session import Session
from archc.kernels.bench.timing import Result

GROUPS = ("operations", "decode", "model", "layer")
GRAPHS = ", CUDA graphs"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the cases are."""

    shapes: tuple[Shape, ...]
    decode: tuple[Shape, ...]
    batch: int  # of a training step
    tokens: int
    batches: tuple[int, ...]  # of decoding
    copied: int  # bytes of the copy that gives the bandwidth
    square: int  # of the product that gives the matrix rate


FULL = Scale(
    (
        Shape(2, 16384, 16, 128),
        Shape(4, 2048, 16, 128),
        Shape(1, 8192, 96, 128),
        Shape(4, 4096, 64, 128),
        Shape(8, 2048, 32, 256),
    ),
    (Shape(1, 1, 16, 128), Shape(32, 1, 16, 128), Shape(256, 1, 16, 128)),
    8,
    2048,
    (1, 32, 256),
    2**30,
    8192,
)
TINY = Scale((Shape(1, 40, 2, 16),), (Shape(2, 1, 2, 16),), 1, 20, (2,), 2**16, 64)


@dataclass(frozen=True, slots=True)
class Case:
    """One case: its group, on what, what is done, and how that is timed into a result."""

    group: str
    name: str
    what: str
    run: Callable[[Session, Result], None]


def cases(scale: Scale) -> Iterator[Case]:
    """All of them."""
    first, *others = TIMED
    both, alone, token = "forward and backward", "forward", "one token"
    size = f"batch {scale.batch}, {scale.tokens} tokens"

    def operation(timed: Timed, shape: Shape, back: bool) -> Case:
        run = partial(run_operation, timed=timed, shape=shape, back=back)
        return Case("operations", f"{timed.name}: {shape}", both if back else alone, run)

    def decode(timed: Timed, shape: Shape, graph: bool = False) -> Case:
        run = partial(run_decode, timed=timed, shape=shape, graph=graph)
        return Case("decode", f"{timed.name}: {shape}", token + (GRAPHS if graph else ""), run)

    def decoding(batch: int, graph: bool) -> Case:
        run = partial(run_decoding, batch=batch, graph=graph)
        return Case("model", f"batch {batch}", "decoding" + (GRAPHS if graph else ""), run)

    for shape in scale.shapes:
        yield operation(first, shape, True)
    for shape in scale.decode:
        yield decode(first, shape)
    yield Case("model", size, "training step", partial(run_training, batch=scale.batch, tokens=scale.tokens))
    for batch in scale.batches:
        yield decoding(batch, False)
    yield Case("layer", size, both, partial(run_layer, batch=scale.batch, tokens=scale.tokens))
    for timed in others:
        for shape in scale.shapes[:3]:
            yield operation(timed, shape, True)
    for shape in scale.decode:
        yield decode(first, shape, True)
    for batch in scale.batches:
        yield decoding(batch, True)
    for timed in TIMED:
        for shape in scale.shapes:
            yield operation(timed, shape, False)
    for timed in others:
        for shape in scale.shapes[3:]:
            yield operation(timed, shape, True)
        for shape in scale.decode:
            yield decode(timed, shape)
