"""The recurrence as it is defined, token by token: the oracle that every other form is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from archc.tiles.kind import RecurrenceKind


@dataclass(slots=True)
class Memory:
    """What one call leaves behind, one row a sequence: S [N, H, K, V], normaliser [N, H, K], maximum [N, H]."""

    S: Tensor
    normaliser: Tensor | None = None
    maximum: Tensor | None = None


def recurrence(
    kind: RecurrenceKind,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    decay: Tensor | None = None,
    decay_rate: Tensor | None = None,
    beta: Tensor | None = None,
    erase_write: Tensor | None = None,
    erase_read: Tensor | None = None,
    log_input: Tensor | None = None,
    eps: float = 0.0,
    memory: Memory | None = None,
    cu_seqlens: Sequence[int] | None = None,
) -> tuple[Tensor, Memory]:
    """Outputs `[B, T, H, V]` and the memory after the last token, in the dtype of the inputs.

    q `[B, T, Hq, K]`; k, erase_write, erase_read `[B, T, Hk, K]`; v `[B, T, Hv, V]`; beta, log_input `[B, T, H]`;
    with factors all but q, decay and log_input have an axis of factors after T. decay as its class says; constant
    `[H]`. The state has the largest head count, in a grouped class that of all but q. Packed when `cu_seqlens` is
    given (B == 1): tokens after its last entry come out as zeros.
    """
    if kind.decay_rate and decay is not None and decay_rate is not None:
        decay = decay.repeat_interleave(max(1, decay_rate.shape[0] // decay.shape[2]), 2)
        rate = decay_rate.repeat_interleave(decay.shape[2] // decay_rate.shape[0], 0)
        decay = decay[:, :, :, None, :] * rate
    given = {
        "q": q, "k": k, "v": v, "decay": decay, "beta": beta,
        "erase_write": erase_write, "erase_read": erase_read, "log_input": log_input,
    }  # fmt: skip
    if kind.decay == "constant" and decay is not None:
        given["decay"] = decay.expand(*q.shape[:2], -1)
    tensors = {name: value for name, value in given.items() if value is not None}
    if cu_seqlens is None:
        return _rows(kind, tensors, scale, eps, memory)
    outputs, after = [], []
    for n, (start, stop) in enumerate(zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True)):
        span = {name: value[:, start:stop] for name, value in tensors.items()}
        o, final = _rows(kind, span, scale, eps, None if memory is None else _row(memory, n))
        outputs.append(o)
        after.append(final)
    outputs.append(outputs[0].new_zeros(1, q.shape[1] - cu_seqlens[-1], *outputs[0].shape[2:]))
    joined = Memory(torch.cat([final.S for final in after]))
    if kind.normalize != "none":
        joined.normaliser = torch.cat([final.normaliser for final in after if final.normaliser is not None])
    if kind.normalize == "max":
        joined.maximum = torch.cat([final.maximum for final in after if final.maximum is not None])
    return torch.cat(outputs, 1), joined


def _row(memory: Memory, n: int) -> Memory:
    parts = (memory.S, memory.normaliser, memory.maximum)
    S, normaliser, maximum = (None if part is None else part[n : n + 1] for part in parts)
    assert S is not None
    return Memory(S, normaliser, maximum)


def _rows(
    kind: RecurrenceKind, tensors: dict[str, Tensor], scale: float, eps: float, memory: Memory | None
) -> tuple[Tensor, Memory]:
    """Each row of the batch is one sequence."""
    per_token = {"q", "decay", "log_input"}
    axis = {name: 3 if kind.factors and name not in per_token else 2 for name in tensors}
    written = {name: value for name, value in tensors.items() if name != "q" or not kind.grouped}
    heads = max(value.shape[axis[name]] for name, value in written.items())
    x = {name: _index_heads(value, axis[name], heads) for name, value in written.items()}
    x["q"] = x.get("q", tensors["q"])
    batch, length, queries, keys = x["q"].shape
    values = x["v"].shape[-1]
    S = x["q"].new_zeros(batch, heads, keys, values) if memory is None else memory.S
    n = x["q"].new_zeros(batch, heads, keys) if memory is None else memory.normaliser
    m = x["q"].new_zeros(batch, heads) if memory is None else memory.maximum
    outputs = []
    for t in range(length):
        token = {name: value[:, t] for name, value in x.items()}
        factors = token["k"].shape[1] if kind.factors else 1
        if kind.read == "exclusive":
            outputs.append(_output(kind, S, n, m, token["q"] * scale, eps))
        decay = token.get("decay")
        weight = None
        if kind.normalize == "max":
            assert m is not None
            decay = torch.zeros_like(m) if decay is None else decay
            log_input = token.get("log_input", torch.zeros_like(m))
            m_next = torch.maximum(decay + m, log_input).detach()
            decay, weight, m = decay + m - m_next, (log_input - m_next).exp(), m_next
        for factor in range(factors):
            here = {
                name: value[:, factor] if kind.factors and name not in per_token else value
                for name, value in token.items()
            }
            ones = torch.ones_like(here["v"][..., :1])
            k = here["k"] if weight is None else here["k"] * weight[..., None]
            if kind.normalize != "none":
                assert n is not None
                n = _advance(kind, n[..., None], here, k, ones, decay if factor == 0 else None)[..., 0]
            S = _advance(kind, S, here, k, here["v"], decay if factor == 0 else None)
        if kind.read == "inclusive":
            outputs.append(_output(kind, S, n, m, token["q"] * scale, eps))
    o = torch.stack(outputs, 1) if outputs else x["q"].new_zeros(batch, 0, queries, values)
    return o, Memory(S, n if kind.normalize != "none" else None, m if kind.normalize == "max" else None)


def _index_heads(x: Tensor, axis: int, heads: int) -> Tensor:
    """Head h of `heads` uses head `h * n // heads` of the n that x has."""
    n = x.shape[axis]
    return x.index_select(axis, torch.tensor([h * n // heads for h in range(heads)], device=x.device))


def _advance(
    kind: RecurrenceKind, S: Tensor, token: dict[str, Tensor], k: Tensor, v: Tensor, decay: Tensor | None
) -> Tensor:
    """One factor of one token: decay, erase, write."""
    before = S
    if decay is not None:
        if kind.decay == "key":
            S = S * decay.exp()[..., :, None]
        elif kind.decay == "value":
            S = S * decay.exp()[..., None, :]
        elif kind.decay == "elementwise":
            S = S * decay.exp()
        else:
            S = S * decay.exp()[..., None, None]
    write = torch.einsum("bhk,bhv->bhkv", k, v)
    if kind.erase == "delta":
        seen = torch.einsum("bhkv,bhk->bhv", S, k)
        return S + token["beta"][..., None, None] * torch.einsum("bhk,bhv->bhkv", k, v - seen)
    if kind.erase == "pair":
        seen = torch.einsum(
            "bhkv,bhk->bhv", before if kind.erase_from == "previous" else S, token["erase_read"]
        )
        S = S + torch.einsum("bhk,bhv->bhkv", token["erase_write"], seen)
    return S + write


def _output(
    kind: RecurrenceKind, S: Tensor, n: Tensor | None, m: Tensor | None, q: Tensor, eps: float
) -> Tensor:
    S = _index_heads(S, 1, q.shape[1])
    n = None if n is None else _index_heads(n, 1, q.shape[1])
    m = None if m is None else _index_heads(m, 1, q.shape[1])
    o = torch.einsum("bhkv,bhk->bhv", S, q)
    if kind.normalize == "none":
        return o
    assert n is not None
    total = torch.einsum("bhk,bhk->bh", n, q)
    if kind.normalize == "max":
        assert m is not None
        total = torch.maximum(total.abs(), (-m).exp())
    return o / (total + eps)[..., None]
