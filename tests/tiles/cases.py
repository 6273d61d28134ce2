"""The classes, inputs for one of recurrence, and one call of its emitted module beside the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from archc.tiles.kind import DECAYS, ERASES, RecurrenceKind, form_of
from archc.tiles.step import Memory, recurrence


def all_kinds() -> list[RecurrenceKind]:
    """Every class of the table that has a form, with chunks of 64."""
    kinds = []
    for decay, erase, erase_from, read, normalize, factors in itertools.product(
        DECAYS,
        ERASES,
        ("decayed", "previous"),
        ("inclusive", "exclusive"),
        ("none", "sum", "max"),
        (False, True),
    ):
        for rate in (False, True):
            kind = RecurrenceKind(
                decay, erase, erase_from, read, normalize, normalize == "max", factors, decay_rate=rate
            )  # fmt: skip
            if form_of(kind).form != "error":
                kinds.append(kind)
    return kinds


# Some classes whose queries share states in groups; all others are the same with as many heads of all.
GROUPED = [
    RecurrenceKind(grouped=True),
    RecurrenceKind("constant", grouped=True),
    RecurrenceKind("head", "delta", grouped=True),
    RecurrenceKind("head", "delta", factors=True, grouped=True),
    RecurrenceKind("key", "pair", "previous", grouped=True),
    RecurrenceKind("key", read="exclusive", grouped=True),
    RecurrenceKind("key", "delta", read="exclusive", factors=True, grouped=True),
    RecurrenceKind("value", grouped=True),
    RecurrenceKind("key", normalize="sum", grouped=True),
    RecurrenceKind("head", normalize="max", log_input=True, grouped=True),
    RecurrenceKind("elementwise", decay_rate=True, grouped=True),
    RecurrenceKind("elementwise", read="exclusive", grouped=True),
]


def label(kind: RecurrenceKind) -> str:
    """A readable name, also the module's."""
    parts = [kind.decay, kind.erase, kind.erase_from, kind.read, kind.normalize]
    parts += ["factors"] if kind.factors else []
    parts += ["rate"] if kind.decay_rate else []
    parts += ["grouped"] if kind.grouped else []
    parts += [str(kind.chunk)] if kind.chunk != 64 else []
    return "_".join(parts)


@dataclass
class Case:
    """The tensors of one call. `tensors` in the order of the public function; `memory` as a place holds it."""

    kind: RecurrenceKind
    tensors: dict[str, Tensor]
    memory: dict[str, Tensor]
    cu_seqlens: tuple[int, ...] | None
    scale: float = 0.7
    eps: float = 1e-3

    def leaves(self) -> list[Tensor]:
        """Everything that a gradient is asked for."""
        return [*self.tensors.values(), *(value for value in self.memory.values() if value.requires_grad)]

    def names(self) -> list[str]:
        """The names of the leaves."""
        return [*self.tensors, *(name for name, value in self.memory.items() if value.requires_grad)]


def make(
    kind: RecurrenceKind,
    length: int,
    cu_seqlens: Sequence[int] | None = None,
    *,
    batch: int = 2,
    heads: tuple[int, int, int] = (2, 1, 2),
    K: int = 5,
    V: int = 3,
    cosine: float = 0.0,
    beta: float | None = None,
    decay: float | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    """Random inputs; `heads` of q, k and v. cosine: of any two keys. beta, decay: these values everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    if cu_seqlens is not None:
        batch = 1
    rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
    Hq, Hk, Hv = heads
    H = max(heads[1:] if kind.grouped else heads)  # of the state
    factors = (3,) if kind.factors else ()
    common = torch.nn.functional.normalize(normal(K), dim=-1)

    def key(*shape: int) -> Tensor:
        own = normal(*shape, K)
        own = torch.nn.functional.normalize(own - (own @ common)[..., None] * common, dim=-1)
        return cosine**0.5 * common + (1 - cosine) ** 0.5 * own

    tensors = {
        "q": normal(batch, length, Hq, K),
        "k": key(batch, length, *factors, Hk),
        "v": normal(batch, length, *factors, Hv, V),
    }
    if kind.normalize == "sum":
        tensors["q"], tensors["k"] = tensors["q"].abs(), tensors["k"].abs()
    if kind.decay != "none":
        shape = {
            "constant": (H,),
            "head": (batch, length, H),
            "key": (batch, length, Hk, K),
            "value": (batch, length, Hv, V),
            "elementwise": (batch, length, Hv, V) if kind.decay_rate else (batch, length, 1, K, V),
        }[kind.decay]
        tensors["decay"] = (
            -uniform(*shape) if decay is None else torch.full(shape, decay, dtype=torch.float64)
        )
    if kind.decay_rate:
        tensors["decay_rate"] = uniform(1, K, V)
    if kind.erase == "delta":
        shape = (batch, length, *factors, Hv)
        tensors["beta"] = uniform(*shape) if beta is None else torch.full(shape, beta, dtype=torch.float64)
    if kind.erase == "pair":
        size = 1.0 if beta is None else beta
        tensors["erase_write"] = -size * uniform(batch, length, *factors, Hk, 1) * tensors["k"]
        tensors["erase_read"] = key(batch, length, *factors, Hk)
    if kind.log_input:
        tensors["log_input"] = 3 * normal(batch, length, H)
    memory = {"s": normal(rows, H, K, V)}
    if kind.normalize != "none":
        memory["s.normaliser"] = normal(rows, H, K).abs()
    tensors = {name: value.to(dtype).requires_grad_() for name, value in tensors.items()}
    memory = {name: value.to(dtype).requires_grad_() for name, value in memory.items()}
    if kind.normalize == "max":
        memory["s.maximum"] = normal(rows, H).to(dtype)
    return Case(kind, tensors, memory, None if cu_seqlens is None else tuple(cu_seqlens))


def layout(module: ModuleType, case: Case) -> Any:
    """The layout of a case, as a model would make it."""
    place = __import__(module.__package__ + ".place", fromlist=["place"])
    length = case.tensors["q"].shape[1]
    if case.cu_seqlens is None:
        return place.dense_layout(case.tensors["q"])
    return place.packed_layout(torch.tensor(case.cu_seqlens), length)


def emitted(
    module: ModuleType, case: Case, form: str = "auto", state: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and memory of the emitted module."""
    memory = dict(case.memory) if state else None
    place = module.Place(layout(module, case), memory, form=form)
    function = getattr(module, module.__name__.rsplit(".", 1)[1])
    extra = {} if case.kind.normalize == "none" else {"eps": case.eps}
    o = function(*case.tensors.values(), scale=case.scale, place=place, key="s", **extra)
    return o, place.memory or {}


def defined(case: Case, state: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and memory of the oracle."""
    memory = None
    if state:
        memory = Memory(case.memory["s"], case.memory.get("s.normaliser"), case.memory.get("s.maximum"))
    o, after = recurrence(
        case.kind, **case.tensors, scale=case.scale, eps=case.eps, memory=memory, cu_seqlens=case.cu_seqlens
    )
    found = {"s": after.S, "s.normaliser": after.normaliser, "s.maximum": after.maximum}
    return o, {name: value for name, value in found.items() if value is not None}


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry where that is above one."""
    if found.numel() == 0:
        return 0.0
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def gradients(o: Tensor, memory: dict[str, Tensor], case: Case, seed: int = 1) -> list[Tensor]:
    """Gradients of all leaves for random cotangents of the outputs inside sequences and of the final state."""
    generator = torch.Generator().manual_seed(seed)

    def weight(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)

    weights = weight(o)
    if case.cu_seqlens is not None:
        weights[:, case.cu_seqlens[-1] :] = 0
    total = (o * weights).sum()
    for name in ("s", "s.normaliser"):
        if name in memory:
            total = total + (memory[name] * weight(memory[name])).sum()
    return list(torch.autograd.grad(total, case.leaves(), allow_unused=True, materialize_grads=True))


def compare(module: ModuleType, case: Case, form: str = "auto") -> dict[str, float]:
    """Differences between the emitted module and the oracle: outputs, memory, and every gradient."""
    o, memory = emitted(module, case, form)
    expected, memory_expected = defined(case)
    end = case.cu_seqlens[-1] if case.cu_seqlens is not None else o.shape[1]
    assert o.isfinite().all()
    found = {"o": difference(o[:, :end], expected[:, :end])}
    for name, value in memory_expected.items():
        found[f"final {name}"] = difference(memory[name], value)
    pairs = zip(
        case.names(), gradients(o, memory, case), gradients(expected, memory_expected, case), strict=True
    )  # fmt: skip
    for name, gradient, wanted in pairs:
        found[f"d{name}"] = difference(gradient, wanted)
    return found
