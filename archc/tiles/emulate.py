"""Run tile programs directly, chunk by chunk, rounding at every declared point: the low-precision oracle.

A program declares its roundings by its operations: whatever enters a matrix product, and every tile that such a
product leaves, is held in the compute dtype; products accumulate, and states, cumulative decays and triangular
inverses are held, in float32 (float64 for float64). The same interpreter runs the forward and its reverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind
from archc.tiles.program import Row, Step, TileProgram
from archc.tiles.reverse import reverse

_SHORT = {"erase_write": "w", "erase_read": "r"}


@dataclass(slots=True)
class Emulated:
    """Outputs `[B, T, H, V]`, the final state `[B, H, K, V]`, and the way back."""

    o: Tensor
    S: Tensor
    _run: _Run = field(repr=False)

    def backward(self, do: Tensor, dS: Tensor) -> dict[str, Tensor]:
        """Gradients of the given tensors by name, and of the initial state as "state"."""
        return self._run.backward(do, dS)


def run(
    kind: RecurrenceKind,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    scale: float,
    state: Tensor | None = None,
) -> Emulated:
    """The core of a class over dense rows, rounded to `dtype`.

    tensors: q, k, v and what the class needs of decay, beta, erase_write, erase_read, shaped as for
    `step.recurrence`. Raises ValueError for a class without a chunk form.
    """
    return _Run(kind, tensors, dtype, scale, state).forward()


class _Run:
    def __init__(
        self,
        kind: RecurrenceKind,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        scale: float,
        state: Tensor | None,
    ) -> None:
        self.kind, self.dtype, self.scale = kind.core(), dtype, scale
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.program = forward(kind)
        self.given = {name: value.shape for name, value in tensors.items()}
        self.length = tensors["q"].shape[1]
        self.heads = max(value.shape[2] for value in tensors.values())
        self.chunks: list[dict[str, Tensor]] = [{} for _ in range(-(-self.length // kind.chunk))]
        for name, value in tensors.items():
            held = self.wide if name == "decay" else dtype
            x = value.detach().to(held).to(self.wide) * (scale if name == "q" else 1.0)
            x = x.repeat_interleave(self.heads // x.shape[2], 2)
            for index, part in enumerate(torch.split(x, kind.chunk, 1)):
                tile = part.new_zeros(part.shape[0], kind.chunk, *part.shape[2:])
                tile[:, : part.shape[1]] = part
                self.chunks[index][_SHORT.get(name, name)] = tile.transpose(1, 2)
        batch = tensors["q"].shape[0]
        shape = (batch, self.heads, tensors["q"].shape[-1], tensors["v"].shape[-1])
        self.state = torch.zeros(shape, dtype=self.wide) if state is None else state.detach().to(self.wide)

    def forward(self) -> Emulated:
        S, outputs = self.state, []
        for tiles in self.chunks:
            tiles["S"] = S
            _Machine(self, tiles).execute(self.program)
            S = tiles["S_next"]
            outputs.append(tiles["o"].to(self.dtype).transpose(1, 2))
        if not outputs:
            v = self.given["v"]
            outputs = [torch.zeros(v[0], 0, self.heads, v[-1], dtype=self.dtype)]
        return Emulated(torch.cat(outputs, 1)[:, : self.length], S, self)

    def backward(self, do: Tensor, dS: Tensor) -> dict[str, Tensor]:
        program = reverse(self.program)
        names = {name: _SHORT.get(name, name) for name in self.given}
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        dS = dS.to(self.wide)
        parts = torch.split(do.to(self.dtype).to(self.wide), self.kind.chunk, 1)
        for tiles, part in zip(reversed(self.chunks), reversed(parts), strict=True):
            gradient = part.new_zeros(part.shape[0], self.kind.chunk, *part.shape[2:])
            gradient[:, : part.shape[1]] = part
            tiles = {**tiles, "do": gradient.transpose(1, 2), "dS_next": dS}
            _Machine(self, tiles).execute(program)
            dS = tiles["dS"]
            for name, short in names.items():
                # Under the delta rule the residual takes v as it is, so its gradient is that of v.
                tile = tiles["dE"] if short == "v" and self.kind.erase == "delta" else tiles[f"d{short}"]
                found[name].insert(0, tile.transpose(1, 2))
        gradients = {}
        for name, tiles_of in found.items():
            x = torch.cat(tiles_of, 1)[:, : self.length] * (self.scale if name == "q" else 1.0)
            heads = self.given[name][2]
            x = x.view(*x.shape[:2], heads, self.heads // heads, *x.shape[3:]).sum(3)
            gradients[name] = x if name == "decay" else x.to(self.dtype)
        return {**gradients, "state": dS}


class _Machine:
    """Interprets the steps of one chunk on tiles `[B, H, C, .]`."""

    def __init__(self, run: _Run, tiles: dict[str, Tensor]) -> None:
        self.kind, self.dtype, self.tiles = run.kind, run.dtype, tiles

    def execute(self, program: TileProgram) -> None:
        for step in program.steps:
            value = getattr(self, f"_{step.operation}")(step)
            if step.operation != "combine":
                value = step.sign * value
            if step.operation in ("read", "apply", "solve", "pair", "project"):
                value = self.round(value)
            self.tiles[step.result] = self.tiles[step.result] + value if step.adds else value

    def round(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).to(x.dtype)

    def plain(self, row: Row) -> Tensor:
        x = self.tiles[row.base]
        return x * self.tiles[row.scalar][..., None] if row.scalar else x

    def exponent(self, mark: str) -> Tensor:
        """The log decay `[B, H, C, 1 or channels]` behind a mark of the read side, or of the write side."""
        G = self.tiles["G"] - self.tiles["decay"] if mark == "<" else self.tiles["G"]
        return G[..., None] if self.kind.decay == "head" else G

    def factor(self, mark: str) -> Tensor:
        G = self.exponent(mark)
        return (G[:, :, -1:] - G).exp() if mark == "-" else G.exp()

    def decayed(self, row: Row) -> Tensor:
        """A row as it meets the state."""
        x = self.plain(row)
        return self.round(x * self.factor(row.exponent) if row.exponent else x)

    def between(self, mark: str, mask: str) -> Tensor:
        """`e^(G_i - G_j)`, `[B, H, C, C, 1 or channels]`, zero where masked."""
        C = self.kind.chunk
        hidden = torch.ones(C, C, dtype=torch.bool).triu(0 if mask == "strict" else 1)[..., None]
        if not mark:
            return (~hidden).to(torch.float64)[None, None]
        difference = self.exponent(mark)[:, :, :, None] - self.exponent("-")[:, :, None]
        return difference.masked_fill(hidden, float("-inf")).exp()

    def _cumulative(self, step: Step) -> Tensor:
        return self.plain(step.operands[0]).cumsum(2)

    def _pair(self, step: Step) -> Tensor:
        x, y = (self.round(self.plain(row)) for row in step.operands)
        between = self.between(step.operands[0].exponent, step.mask).to(x.dtype)
        if between.shape[-1] == 1:
            return (x @ y.mT) * between[..., 0]
        return torch.einsum("bhid,bhjd,bhijd->bhij", x, y, between)

    def _invert(self, step: Step) -> Tensor:
        A = self.tiles[step.operands[0].base] * (-1 if step.minus else 1)
        one = torch.eye(self.kind.chunk, dtype=A.dtype).expand_as(A)
        inverse: Tensor = torch.linalg.solve_triangular(A + one, one, upper=False, unitriangular=True)
        return inverse

    def _apply(self, step: Step) -> Tensor:
        P, rows = step.operands
        scores, y = self.round(self.tiles[P.base]), self.round(self.plain(rows))
        mark = rows.exponent if step.transposed else step.into
        between = self.between(mark, step.mask).to(y.dtype)
        if between.shape[-1] == 1:
            scores = scores * between[..., 0]
            return (scores.mT if step.transposed else scores) @ y
        text = "bhij,bhid,bhijd->bhjd" if step.transposed else "bhij,bhjd,bhijd->bhid"
        return torch.einsum(text, scores, y, between)

    def _solve(self, step: Step) -> Tensor:
        inverse, z = self.tiles[step.operands[0].base], self.tiles[step.operands[1].base]
        return (inverse.mT if step.transposed else inverse) @ z

    def _read(self, step: Step) -> Tensor:
        x, S = step.operands
        out = self.decayed(x) @ self.round(self.tiles[S.base])
        return out * self.factor(step.into) if step.into else out

    def _project(self, step: Step) -> Tensor:
        y, S = step.operands
        out = self.decayed(y) @ self.round(self.tiles[S.base]).mT
        return out * self.factor(step.into) if step.into else out

    def _update(self, step: Step) -> Tensor:
        S = self.tiles[step.operands[0].base]
        if self.kind.decay != "none":
            whole = self.exponent("-")[:, :, -1].exp()
            S = S * (whole[:, :, None] if self.kind.decay == "value" else whole[..., None])
        signs = step.signs or (1,) * (len(step.operands) // 2)
        for x, y, sign in zip(step.operands[1::2], step.operands[2::2], signs, strict=True):
            S = S + sign * self.decayed(x).mT @ self.decayed(y)
        return S

    def _extract(self, step: Step) -> Tensor:
        P = self.tiles[step.operands[0].base]
        offset = -1 if step.mask == "neighbour" else 0
        self.tiles[step.operands[0].base] = P.tril(offset - 1)
        return P.diagonal(offset, 2, 3)

    def _scale(self, step: Step) -> Tensor:
        a, b = (self.tiles[row.base] for row in step.operands)
        return a[:, :, : b.shape[2]] * b

    def _add(self, step: Step) -> Tensor:
        row = step.operands[0]
        if step.mask != "neighbour" or not row.scalar:
            return self.plain(row)
        x, scalar = self.tiles[row.base], self.tiles[row.scalar][..., None]
        out = torch.zeros_like(x)
        if step.transposed:
            out[:, :, :-1] = x[:, :, 1:] * scalar
        else:
            out[:, :, 1:] = x[:, :, :-1] * scalar
        return out

    def _combine(self, step: Step) -> Tensor:
        a, b = step.operands
        if b.scalar:
            return self.plain(a) + self.plain(b)
        return self.plain(a) + step.sign * self.plain(b)

    def _contract(self, step: Step) -> Tensor:
        product = self.plain(step.operands[0]) * self.plain(step.operands[1])
        if step.result != "anchor":
            return product.sum(3)
        return product.sum({"head": (2, 3), "key": (3,), "value": (2,)}[self.kind.decay])

    def _gather(self, step: Step) -> Tensor:
        total, before, written = (torch.zeros_like(self.tiles["G"]) for _ in range(3))
        for role, gradient in zip(step.operands[1::2], step.operands[2::2], strict=True):
            part = self.plain(role) * self.tiles[gradient.base]
            part = part.sum(3) if self.kind.decay == "head" else part
            if role.exponent == ">":
                written = written + part
            elif role.exponent == "<":
                before = before + part
            else:
                total = total - part if role.exponent == "-" else total + part
        total[:, :, -1] += self.tiles["anchor"] * self.tiles["G"][:, :, -1].exp()
        gradient_of_decay = total.flip(2).cumsum(2).flip(2)
        gradient_of_decay[:, :, :-1] += before[:, :, 1:].flip(2).cumsum(2).flip(2)
        gradient_of_decay[:, :, 1:] += written[:, :, :-1].cumsum(2)
        return gradient_of_decay
