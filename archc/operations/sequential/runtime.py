"""A cell evaluated token by token, each time with its own values of the token before."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .cache import gather_back, spread
from .place import Place
from .precision import wide

if TYPE_CHECKING:
    from .state import Entry

# One package may be imported several times, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)
while hasattr(getattr(torch.ops, _NAMESPACE), "walk"):
    _NAMESPACE += "_"

_CELLS: WeakValueDictionary[int, Cell] = WeakValueDictionary()
_NUMBERS = itertools.count()


class Cell(nn.Module):
    """What happens at one token.

    A subclass gives `forward(*inputs, *before) -> (y, *after)`, all `[N, 1, ...]`: `before` are the values that the
    token before has left, `after` the same for the token that follows, both in the order of `state_entries`. It is
    computed in float32, so its weights keep float32 under `.to(bfloat16)`.
    """

    number: int  # under which operations of the compiler find it

    def __init__(self) -> None:
        super().__init__()
        self._enrol()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._enrol()  # a copy is a cell of its own

    def _enrol(self) -> None:
        self.number = next(_NUMBERS)
        _CELLS[self.number] = self

    def state_entries(self) -> dict[str, Entry]:
        """The memory of one sequence."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Cell:
        kept = {
            name: parameter.detach().clone()
            for name, parameter in self.named_parameters()
            if parameter.dtype == torch.float32
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, parameter in self.named_parameters():
            if name in kept and parameter.dtype not in (torch.float32, torch.float64):
                parameter.data = kept[name].to(device=parameter.device)
        return self


def sequential(cell: Cell, inputs: tuple[Tensor, ...], place: Place) -> Tensor:
    """What `cell` gives at each token, one after the other: inputs `[B, T, ...]` -> `[B, T, ...]`.

    A sequence begins with the start values of `cell.state_entries()`, or with the memory, `[N, ...]`. Computed in
    float32 or wider; the result has the dtype of the first input. Sequences of a packed row run side by side.
    """
    layout, entries, dtype = place.layout, cell.state_entries(), inputs[0].dtype
    given = [wide(u) for u in inputs]
    lengths_N: Tensor | None = None
    if layout.cu_seqlens is not None:
        given, lengths_N = [spread(place, u) for u in given], layout.cu_seqlens.diff()
    before: list[Tensor] = []
    for name, entry in entries.items():
        stored = place.read(name)
        if stored is None:
            stored = entry.tensor(given[0].shape[0], 0, given[0].dtype, given[0].device)
        before.append(stored.to(given[0].dtype).unsqueeze(1))
    # A loop in Python is a graph of its own for each length, so the compiler sees one operation instead.
    opaque = torch.compiler.is_compiling() and given[0].shape[1] != 1
    with torch.autocast(given[0].device.type, enabled=False):
        y, after = (_operation if opaque else walk)(cell, given, before, lengths_N)
    for name, value in zip(entries, after, strict=True):
        place.write(name, value.squeeze(1))
    if layout.cu_seqlens is not None:
        y = gather_back(place, y)
    return y.to(dtype)


def walk(
    cell: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    before: Sequence[Tensor],
    lengths_N: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """The definition: the results `[N, T, ...]`, and the values `[N, 1, ...]` after each sequence's last token.

    Sequence n has the first `lengths_N[n]` tokens only; the values after them stay as they are.
    """
    after = list(before)
    if not inputs[0].shape[1]:  # a result without tokens has a shape too
        nothing = [u.new_zeros(u.shape[0], 1, *u.shape[2:]) for u in inputs]
        return cell(*nothing, *before)[0][:, :0], after
    results: list[Tensor] = []
    for t in range(inputs[0].shape[1]):
        y, *new = cell(*(u[:, t : t + 1] for u in inputs), *after)
        results.append(y)
        new = [value.to(old.dtype) for value, old in zip(new, after, strict=True)]  # truth values too
        if lengths_N is not None:
            new = [_where(t < lengths_N, there, old) for there, old in zip(new, after, strict=True)]
        after = new
    return torch.cat(results, 1), after


def _where(condition_N: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition_N.view(-1, *(1,) * (b.dim() - 1)), a, b)


# `walk` as one operation of the compiler. The cell itself cannot be an argument: it is found by its number, and its
# weights are handed over, so that they get gradients. Backward walks again with autograd on.

_GIVEN = "Tensor[] inputs, Tensor[] before, Tensor? lengths, Tensor[] weights"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"walk(int cell, {_GIVEN}) -> Tensor[]")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    f"walk_backward(int cell, Tensor[] slopes, {_GIVEN}) -> Tensor[]"
)


def _operation(
    cell: Cell, inputs: Sequence[Tensor], before: Sequence[Tensor], lengths_N: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    weights = list(cell.parameters())
    y, *after = getattr(torch.ops, _NAMESPACE).walk(
        cell.number, list(inputs), list(before), lengths_N, weights
    )
    return y, after


def _with_weights(number: int, weights: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The cell of this number with these weights."""
    cell = _CELLS[number]
    named = {name: weight for (name, _), weight in zip(cell.named_parameters(), weights, strict=True)}

    def call(*arguments: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = functional_call(cell, named, arguments)
        return found

    return call


def _forward(
    number: int,
    inputs: list[Tensor],
    before: list[Tensor],
    lengths: Tensor | None,
    weights: list[Tensor],
) -> list[Tensor]:
    with torch.no_grad():
        y, after = walk(_with_weights(number, weights), inputs, before, lengths)
    return [y, *(value.clone(memory_format=torch.contiguous_format) for value in after)]


def _backward(
    number: int,
    slopes: list[Tensor],
    inputs: list[Tensor],
    before: list[Tensor],
    lengths: Tensor | None,
    weights: list[Tensor],
) -> list[Tensor]:
    tensors = [tensor.detach().requires_grad_() for tensor in (*inputs, *before, *weights)]
    first, second = len(inputs), len(inputs) + len(before)
    with torch.enable_grad():
        cell = _with_weights(number, tensors[second:])
        y, after = walk(cell, tensors[:first], tensors[first:second], lengths)
    reached = [(out, slope) for out, slope in zip((y, *after), slopes, strict=True) if out.requires_grad]
    outs, given = [out for out, _ in reached], [slope for _, slope in reached]
    found = torch.autograd.grad(outs, tensors, given, allow_unused=True) if outs else [None] * len(tensors)
    return [
        tensor.new_zeros(tensor.shape)
        if slope is None
        else slope.clone(memory_format=torch.contiguous_format)
        for tensor, slope in zip(tensors, found, strict=True)
    ]


def _shapes(
    number: int, inputs: list[Tensor], before: list[Tensor], lengths: Tensor | None, weights: list[Tensor]
) -> list[Tensor]:
    one = [u.new_empty(u.shape[0], 1, *u.shape[2:]) for u in inputs]
    y = _with_weights(number, weights)(*one, *before)[0]
    return [
        y.new_empty(y.shape[0], inputs[0].shape[1], *y.shape[2:]),
        *(value.new_empty(value.shape) for value in before),
    ]


def _shapes_backward(
    number: int,
    slopes: list[Tensor],
    inputs: list[Tensor],
    before: list[Tensor],
    lengths: Tensor | None,
    weights: list[Tensor],
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (*inputs, *before, *weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.number, given, before, lengths, weights = inputs
    ctx.counts = len(given), len(given) + len(before)
    ctx.has_lengths = lengths is not None
    ctx.outputs = [(out.shape, out.dtype, out.device) for out in output]
    ctx.save_for_backward(*given, *before, *weights, *([] if lengths is None else [lengths]))


def _differentiate(ctx: Any, slopes: list[Tensor | None]) -> tuple[Any, ...]:
    *tensors, last = ctx.saved_tensors
    lengths = last if ctx.has_lengths else None
    tensors = tensors if ctx.has_lengths else [*tensors, last]
    first, second = ctx.counts
    full = [
        torch.zeros(shape, dtype=dtype, device=device) if slope is None else slope.contiguous()
        for slope, (shape, dtype, device) in zip(slopes, ctx.outputs, strict=True)
    ]
    parts = tensors[:first], tensors[first:second]
    found = getattr(torch.ops, _NAMESPACE).walk_backward(ctx.number, full, *parts, lengths, tensors[second:])
    return None, found[:first], found[first:second], None, found[second:]


_LIBRARY.impl("walk", _forward, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("walk_backward", _backward, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake(f"{_NAMESPACE}::walk", _shapes)
torch.library.register_fake(f"{_NAMESPACE}::walk_backward", _shapes_backward)
torch.library.register_autograd(f"{_NAMESPACE}::walk", _differentiate, setup_context=_save)
