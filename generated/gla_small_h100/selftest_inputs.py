"""Inputs that break kernels: nearly equal keys, reflections, no decay and full decay, ragged and empty sequences."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .selftest_cases import Recurrence

LENGTHS = (1, 15, 16, 17, 63, 64, 65, 127, 129, 1000)
# Of few heads kernels walk spans of 1,024 tokens or more beside each other, and keep a state every 4,096.
LONG = 4300
SEQUENCES = ((0, 15, 65, 0, 129, 0), (1, 64, 1, 0, 17), (0, 0))


@dataclass(frozen=True)
class Draw:
    """One set of inputs. Sequences lie in rows where they are equally long, else packed into one row.

    cosine: of any two keys; 1 stands for runs of equal keys. beta, decay: the same for every token, or random
    where None; decay "mixed" is 0, the lowest, or random. tail: tokens behind the last sequence.
    """

    lengths: tuple[int, ...]
    cosine: float = 0.0
    beta: float | None = None
    decay: float | str | None = None
    state: bool = False
    packed: bool = False
    tail: int = 0

    @property
    def borders(self) -> list[int]:
        """Where sequences begin and end in a packed row."""
        return [sum(self.lengths[:n]) for n in range(len(self.lengths) + 1)]

    def __str__(self) -> str:
        lengths = (
            ", ".join(map(str, self.lengths)) if self.packed else f"{len(self.lengths)} x {self.lengths[0]}"
        )
        parts = [f"{'packed ' if self.packed else ''}{lengths}"]
        parts += (
            ["runs of equal keys"] if self.cosine == 1 else [f"cosine {self.cosine:g}"] if self.cosine else []
        )
        parts += [f"beta {self.beta:g}"] if self.beta is not None else []
        if self.decay is not None:
            parts.append(f"decay {self.decay if isinstance(self.decay, str) else format(self.decay, 'g')}")
        return ", ".join([*parts, *(["continued"] if self.state else [])])


def draws(case: Recurrence, quick: bool, on_gpu: bool = False) -> Iterator[Draw]:
    """All inputs for one recurrence; `quick`: a third of them, and nothing long but on a GPU."""
    low = -5.0 if case.bounded else -50.0
    betas = (1.0, 1.99) if {"beta", "w"} & case.shapes.keys() else (None,)
    decays: tuple[float | str | None, ...] = (0.0, low, "mixed") if "decay" in case.shapes else (None,)
    for number, length in enumerate(LENGTHS):
        if not quick or number % 3 == 0 and length < 200:
            yield Draw((length,) * (1 if length > 200 else 2))
    number = 0
    for cosine in (0.0, 0.5, 0.99, 1.0):
        for beta in betas:
            for decay in decays:
                number += 1
                if not quick or number % 5 == 1:
                    yield Draw((129,), cosine, beta, decay)
    for lengths in SEQUENCES[:1] if quick else SEQUENCES:
        yield Draw(lengths, state=True, packed=True, tail=7)
    yield Draw((65, 65), 0.5, 1.0 if betas[0] else None, state=True)
    if on_gpu or not quick:  # so little decays that every span depends on those before it
        yield Draw((LONG,), decay=-0.001 if "decay" in case.shapes else None, state=True)


def smaller(case: Recurrence) -> Recurrence:
    """The same case with few heads, in the same proportions."""
    every = math.gcd(case.queries, *(shape[0] for shape in case.shapes.values()))
    less = every // 2 if every % 2 == 0 else every
    shapes = {name: (shape[0] // less, *shape[1:]) for name, shape in case.shapes.items()}
    return case._replace(shapes=shapes, queries=case.queries // less)


def inputs(case: Recurrence, draw: Draw, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """The arguments in order, float32, with values that bfloat16 and float16 hold exactly (`wide` ones: any)."""
    draw_from = torch.Generator().manual_seed(zlib.crc32(f"{case.module} {draw} {seed}".encode()))
    rows, length = (1, draw.borders[-1] + draw.tail) if draw.packed else (len(draw.lengths), draw.lengths[0])
    low = -5.0 if case.bounded else -50.0

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw_from)

    def directions(heads: int, width: int) -> Tensor:
        """Unit vectors with the cosine that is asked for."""
        x = F.normalize(random(rows, length, heads, width), dim=-1)
        if draw.cosine == 1:
            number = torch.arange(length) // 20 * 20  # the first of 20 equal tokens
            return x[:, number]
        shared = F.normalize(random(rows, 1, heads, width), dim=-1)
        return F.normalize(draw.cosine**0.5 * shared + (1 - draw.cosine) ** 0.5 * x, dim=-1)

    def decays(shape: tuple[int, ...]) -> Tensor:
        x = -0.5 * torch.rand(shape, generator=draw_from)
        if draw.decay == "mixed":
            kind = torch.randint(3, shape, generator=draw_from)
            return x.masked_fill(kind == 0, 0.0).masked_fill(kind == 1, low)
        return x if draw.decay is None else torch.full(shape, float(draw.decay))

    found: dict[str, Tensor] = {}
    strength = torch.rand(rows, length, 1, 1, generator=draw_from)
    strength = strength if draw.beta is None else torch.full_like(strength, draw.beta)
    for name, shape in case.shapes.items():
        if name == "k":
            x = directions(*shape)
        elif name == "beta":
            x = torch.rand(rows, length, *shape, generator=draw_from)
            x = x if draw.beta is None else torch.full_like(x, draw.beta)
        elif name == "r":  # with w = -beta r the erase is a projection or a reflection
            x = directions(*shape)
            heads = case.shapes["w"][0]
            found["w"] = _held(-strength * x[:, :, [h * shape[0] // heads for h in range(heads)]])
        elif name == "w":
            x = torch.zeros(rows, length, *shape)
        elif name == "decay":
            x = decays((rows, length, *shape))
        elif name == "rate":
            x = torch.rand(shape, generator=draw_from) + 0.5
        else:
            x = random(rows, length, *shape)
            x = F.normalize(x, dim=-1) if name == "q" else x
        found[name] = x if name in case.wide else _held(x)
    if "v" in case.wide:
        found["v"][..., -1] = 1.0  # the column of the normaliser
    return {name: x.to(device) for name, x in found.items()}


def initial_state(case: Recurrence, draw: Draw, device: torch.device) -> Tensor:
    """`[N, H, K, V]`, zero where sequences begin."""
    heads = max(shape[0] for shape in case.shapes.values())
    shape = len(draw.lengths), heads, case.shapes["q"][-1], case.shapes["v"][-1]
    state = torch.randn(shape, generator=torch.Generator().manual_seed(len(draw.lengths)))
    return (0.1 * state if draw.state else torch.zeros(shape)).to(device)


def _held(x: Tensor) -> Tensor:
    """Rounded to numbers that both 16-bit dtypes have."""
    return x.bfloat16().half().float()
