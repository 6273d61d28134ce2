"""Linear recurrence with a decay per head.

S' = exp(decay) S;  S_next = S' + k v^T;  o = scale S_next^T q.

Axes: B rows of the batch, T tokens, H heads, K and V the two axes of the state S, N sequences, C tokens of
a chunk.
A tile is one chunk of one head of one sequence. M runs over all tiles, A over those of one step of the walk.
Within a chunk, G is the running sum of the log decay; `in` is e^G, `out` is e^(G_end - G), `all` is e^G_end.
One chunk, from the state S that enters it to the state S_next that leaves it:

 1. G = running sum of decay
 2. qk = [q_i . k_j e^(G_i - G_j) for j <= i]
 3. S_next = e^G_end S + (k e^(G_end - G))^T v
 4. o = (q e^G) S + qk v

These numbers stand beside the lines; in the backward they name the step that is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .place import Place
from .tiling import tile_bound, tiling_of
from .torch_form import say_torch_form
from .triton_versions import wrong_gradients

CHUNK = 64
NAMESPACE = __name__.replace(".", "_")
while hasattr(getattr(torch.ops, NAMESPACE), "decode"):
    NAMESPACE += "_"  # imported once more under the same name


def head_decay(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, decay_BTH: Tensor, *, scale: float, place: Place, key: str
) -> Tensor:
    """The recurrence over all tokens of the call: prefill, continuation or one decode step.

    q [B, T, H, K], k [B, T, H, K], v [B, T, H, V], decay [B, T, H].
    Head counts divide the largest one, H; head h of it uses head `h * n // H` of n. The memory of `place`
    holds, in float32 or, in a float64 model, float64, `key`: S [N, H, K, V].
    Without a state, sequences start from zero. Returns o [B, T, H, V].
    """
    if torch.is_autocast_enabled(v_BTHV.device.type):
        v_BTHV = v_BTHV.to(torch.get_autocast_dtype(v_BTHV.device.type))
    o_BTHV = _recurrence(q_BTHK, k_BTHK, v_BTHV, decay_BTH, scale, place, key)
    return o_BTHV


def _recurrence(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, decay_BTH: Tensor, scale: float, place: Place, key: str
) -> Tensor:
    """Read the state, take the form that fits the call, store the state."""
    cu_seqlens = place.layout.cu_seqlens
    state = place.read(key)
    one_token = q_BTHK.shape[1] == 1 and cu_seqlens is None and place.form == "auto"
    if state is not None and one_token and not torch.is_grad_enabled():
        if not place.in_place:
            state = state.clone()
        o_BHV: Tensor = decode(q_BTHK[:, 0], k_BTHK[:, 0], v_BTHV[:, 0], decay_BTH[:, 0], state, scale)
        place.write(key, state)
        return o_BHV[:, None]
    if place.form == "step":
        o_BTHV, final = token_loop(q_BTHK, k_BTHK, v_BTHV, decay_BTH, state, cu_seqlens, scale)
    else:
        o_BTHV, final = chunk(q_BTHK, k_BTHK, v_BTHV, decay_BTH, state, cu_seqlens, scale)[:2]
    place.write(key, final)
    return o_BTHV


# One token at a time: the definition, and the decode step.


def token_loop(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    decay_BTH: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is defined, token by token, for autograd to follow."""
    if cu_seqlens is not None:
        parts, finals = [], []
        borders = cu_seqlens.tolist()
        for n, (start, stop) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
            span = slice(start, stop)
            before = None if state is None else state[n : n + 1]
            o, final = token_loop(
                q_BTHK[:, span], k_BTHK[:, span], v_BTHV[:, span], decay_BTH[:, span], before, None, scale
            )
            parts.append(o)
            finals.append(final)
        parts.append(parts[0].new_zeros(1, v_BTHV.shape[1] - borders[-1], *parts[0].shape[2:]))
        return torch.cat(parts, 1), torch.cat(finals)
    H = max(q_BTHK.shape[2], k_BTHK.shape[2], v_BTHV.shape[2], decay_BTH.shape[2])
    dtype = torch.float64 if v_BTHV.dtype == torch.float64 else torch.float32
    q = q_BTHK.to(dtype).repeat_interleave(H // q_BTHK.shape[2], 2)
    k = k_BTHK.to(dtype).repeat_interleave(H // k_BTHK.shape[2], 2)
    v = v_BTHV.to(dtype).repeat_interleave(H // v_BTHV.shape[2], 2)
    decay = decay_BTH.to(dtype).repeat_interleave(H // decay_BTH.shape[2], 2)
    B, T, _, K = q.shape
    S_BHKV = q.new_zeros(B, H, K, v.shape[3]) if state is None else state.to(dtype)
    outputs = []
    for t in range(T):
        q_BHK = q[:, t] * scale
        k_BHK = k[:, t]
        v_BHV = v[:, t]
        decay_BH = decay[:, t]
        S_BHKV = S_BHKV * decay_BH.exp()[:, :, None, None]
        S_BHKV = S_BHKV + k_BHK[:, :, :, None] * v_BHV[:, :, None, :]
        o_BHV = (S_BHKV * q_BHK[:, :, :, None]).sum(2)
        outputs.append(o_BHV)
    o_BTHV = torch.stack(outputs, 1) if outputs else v[:, :, :, :]
    return o_BTHV.to(v_BTHV.dtype), S_BHKV


def decode_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, decay_BH: Tensor, S_BHKV: Tensor, scale: float
) -> Tensor:
    """One token for each sequence; the state is changed in place. Returns o [B, H, V]."""
    B, H, K, V = S_BHKV.shape
    S_AKV = S_BHKV.view(-1, K, V)
    q_AK = _flat(q_BHK, S_BHKV)
    k_AK = _flat(k_BHK, S_BHKV)
    v_AV = _flat(v_BHV, S_BHKV)
    decay_A = _flat(decay_BH, S_BHKV)
    S_AKV.mul_(decay_A.exp()[:, None, None])
    S_AKV.baddbmm_(k_AK[:, :, None], v_AV[:, None])
    o_A1V = torch.bmm(q_AK[:, None], S_AKV)
    return o_A1V.mul_(scale).view(B, H, V).to(v_BHV.dtype)


def _flat(x: Tensor, S_BHKV: Tensor) -> Tensor:
    """`[B, h, ...]` as `[B * H, ...]` in the state's dtype, heads shared by a group repeated."""
    if x.shape[1] != S_BHKV.shape[1]:
        x = x.repeat_interleave(S_BHKV.shape[1] // x.shape[1], 1)
    return x.flatten(0, 1).to(S_BHKV.dtype)


# The form over chunks.


def chunk_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs `[B, T, H, V]`, the final state `[N, H, K, V]`, and what the backward needs."""
    tiling = tiling_of(v, max(q.shape[2], k.shape[2], v.shape[2], decay.shape[2]), cu_seqlens, CHUNK)
    q_MCK = tiling.gather(q)
    k_MCK = tiling.gather(k)
    v_MCV = tiling.gather(v)
    decay_MC = tiling.gather(decay)
    q_MCK.mul_(scale)
    states = tiling.states(state, q_MCK, v_MCV)
    G_MC = decay_MC.cumsum(1)  # 1
    between_MCC = _between(G_MC, G_MC, diagonal=0)
    all_M11 = G_MC[:, -1:].exp()[:, :, None]
    out_MC1 = (G_MC[:, -1:] - G_MC).exp()[:, :, None]
    in_MC1 = G_MC.exp()[:, :, None]
    qk_MCC = torch.bmm(q_MCK, k_MCK.mT).mul_(between_MCC)  # 2
    o_MCV = torch.bmm(qk_MCC, v_MCV)  # 4
    for m, enter, leave in tiling.walk:
        S_AKV, S_next_AKV = states[enter], states[leave]
        torch.mul(S_AKV, all_M11[m], out=S_next_AKV)  # 3
        S_next_AKV.baddbmm_(k_MCK[m].mT, v_MCV[m] * out_MC1[m])
    S_MKV = tiling.incoming(states)
    o_MCV.addcmul_(torch.bmm(q_MCK, S_MKV), in_MC1)  # 4
    return (
        tiling.scatter(o_MCV, v, tiling.heads),
        tiling.final(states),
        tiling.padded(states, state=True),
    )


def chunk_backward(
    do: Tensor,
    dfinal: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    cu_seqlens: Tensor | None,
    states: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, decay and the initial state.

    The forward's steps in reverse, dS carried from the end.
    """
    tiling = tiling_of(v, max(q.shape[2], k.shape[2], v.shape[2], decay.shape[2]), cu_seqlens, CHUNK)
    q_MCK = tiling.gather(q)
    k_MCK = tiling.gather(k)
    v_MCV = tiling.gather(v)
    decay_MC = tiling.gather(decay)
    q_MCK.mul_(scale)
    do_MCV = tiling.gather(do)
    S_MKV = tiling.incoming(states)
    G_MC = decay_MC.cumsum(1)  # 1
    between_MCC = _between(G_MC, G_MC, diagonal=0)
    in_MC1 = G_MC.exp()[:, :, None]
    out_MC1 = (G_MC[:, -1:] - G_MC).exp()[:, :, None]
    all_M11 = G_MC[:, -1:].exp()[:, :, None]
    qk_MCC = torch.bmm(q_MCK, k_MCK.mT).mul_(between_MCC)  # 2
    dqk_MCC = torch.bmm(do_MCV, v_MCV.mT).mul_(between_MCC)  # 4
    dv_MCV = torch.bmm(qk_MCC.mT, do_MCV)  # 4
    dq_MCK = torch.bmm(do_MCV, S_MKV.mT).mul_(in_MC1)  # 4
    own_qk_MC = dqk_MCC.diagonal(0, 1, 2).clone()  # 2
    dqk_MCC.tril_(-1)
    dq_MCK.baddbmm_(dqk_MCC, k_MCK)  # 2
    dk_MCK = torch.bmm(dqk_MCC.mT, q_MCK)  # 2
    dk_state_MCK = q_MCK.new_empty(tiling.tiles, CHUNK, q_MCK.shape[2])
    anchor_M = q_MCK.new_empty(tiling.tiles)
    dS = tiling.ranked(dfinal)
    for m, enter, _ in reversed(tiling.walk):
        S_AKV, dS_AKV = states[enter], dS[: m.stop - m.start]
        torch.mul(torch.bmm(v_MCV[m], dS_AKV.mT), out_MC1[m], out=dk_state_MCK[m])  # 3
        dv_MCV[m].addcmul_(torch.bmm(k_MCK[m], dS_AKV), out_MC1[m])  # 3
        anchor_M[m] = (S_AKV * dS_AKV).sum((1, 2))  # 3
        dS_AKV.mul_(all_M11[m])  # 3
        dS_AKV.baddbmm_(q_MCK[m].mT, do_MCV[m] * in_MC1[m])
    dG_MC = (q_MCK * dq_MCK).sum(2) - (k_MCK * dk_MCK).sum(2)  # 1
    dG_MC[:, -1] += anchor_M * all_M11[:, 0, 0]
    ddecay_MC = dG_MC.flip(1).cumsum(1).flip(1)
    dG_after_MC = (k_MCK * dk_state_MCK).sum(2)
    ddecay_MC[:, 1:] += dG_after_MC[:, :-1].cumsum(1)
    dk_MCK.add_(dk_state_MCK)  # 3
    dq_MCK.addcmul_(k_MCK, own_qk_MC[:, :, None])  # 2
    dk_MCK.addcmul_(q_MCK, own_qk_MC[:, :, None])  # 2
    dq_MCK.mul_(scale)
    return (
        tiling.scatter(dq_MCK, q),
        tiling.scatter(dk_MCK, k),
        tiling.scatter(dv_MCV, v),
        tiling.scatter(ddecay_MC, decay),
        tiling.unranked(dS),
    )


# The operations behind it, as autograd, autocast and the compiler know them.

_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor decay"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]

chunk = torch.library.custom_op(
    f"{NAMESPACE}::chunk",
    chunk_forward,
    mutates_args=(),
    schema=f"({_TENSORS}, Tensor? state, Tensor? cu_seqlens, float scale) -> (Tensor, Tensor, Tensor)",
)
chunk_reverse = torch.library.custom_op(
    f"{NAMESPACE}::chunk_reverse",
    chunk_backward,
    mutates_args=(),
    schema=f"(Tensor do, Tensor dfinal, {_TENSORS}, Tensor? cu_seqlens, "
    "Tensor states, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_library.define(  # type: ignore[no-untyped-call]
    f"decode({_TENSORS}, Tensor(a!) state, float scale) -> Tensor"
)
_library.impl("decode", decode_step, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
decode = getattr(torch.ops, NAMESPACE).decode.default


@chunk.register_fake
def _chunk_shapes(*given: Any) -> tuple[Tensor, ...]:
    q, k, v, decay, _, cu_seqlens, _ = given
    B, T, _, V = v.shape
    K, H = q.shape[3], max(q.shape[2], k.shape[2], v.shape[2], decay.shape[2])
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    M = tile_bound(B, T, H, cu_seqlens, CHUNK)
    like = v.new_empty(0, dtype=torch.float64 if v.dtype == torch.float64 else torch.float32)
    if _has_kernels(q, v):
        return (
            v.new_empty(B, T, H, V),
            like.new_empty(N, H, K, V),
            like.new_empty(B * T // (SEGMENT * CHUNK) + N, H, K, V),
        )
    return (
        v.new_empty(B, T, H, V),
        like.new_empty(N, H, K, V),
        like.new_empty(N * H + M, K, V),
    )


@chunk_reverse.register_fake
def _chunk_reverse_shapes(*given: Any) -> tuple[Tensor, ...]:
    _, dfinal, *tensors = given
    like = (*tensors[:4], dfinal)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in like)


@torch.library.register_fake(f"{NAMESPACE}::decode", lib=_library)  # type: ignore[untyped-decorator]
def _decode_shapes(*given: Any) -> Tensor:
    v, state = given[2], given[-2]
    shape = v.shape[0], state.shape[1], v.shape[2]
    return torch.empty(shape, dtype=v.dtype, device=v.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, state, cu_seqlens, ctx.scale = inputs
    _, final, *kept = output
    ctx.save_for_backward(*tensors, cu_seqlens, *kept)
    ctx.state_dtype = None if state is None else state.dtype
    ctx.final = final.shape, final.dtype, final.device
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor | None, dfinal: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    rest = ctx.saved_tensors
    v = rest[2]
    if dfinal is None:
        shape, dtype, device = ctx.final
        dfinal = torch.zeros(shape, dtype=dtype, device=device)
    if do is None:
        do = v.new_zeros(*v.shape[:2], dfinal.shape[1], v.shape[3])
    *gradients, dstate = chunk_reverse(do, dfinal, *rest, ctx.scale)
    return *gradients, None if ctx.state_dtype is None else dstate.to(ctx.state_dtype), None, None


chunk.register_autograd(_differentiate, setup_context=_keep)


def _without_autocast(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Run an operation with autocast off: its own rule is float32 inside and the dtype of v outside."""

    def run(_: Any, *arguments: Any) -> Any:
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
        keys = keys | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*arguments)

    return run


for _name in ("chunk", "chunk_reverse", "decode"):
    for _device in ("AutocastCPU", "AutocastCUDA"):
        _rule = _without_autocast(getattr(getattr(torch.ops, NAMESPACE), _name).default)
        _library.impl(_name, _rule, _device, with_keyset=True)  # type: ignore[no-untyped-call]


# On a GPU: head_decay_kernels.py, imported there only, since it needs Triton.


def _decode_on_gpu(*given: Any) -> Tensor:
    from . import head_decay_kernels as kernels

    with torch.cuda.device(given[0].get_device()):  # launches go to the current one
        o: Tensor = kernels.decode_step(*given)
    return o


_library.impl("decode", _decode_on_gpu, "CUDA")  # type: ignore[no-untyped-call]

# The (K, V) that there are kernels for, and the chunks between two states that they keep.
KERNEL_SIZES = {(32, 32)}
SEGMENT = 64
GRADIENT_KERNELS = True  # whether gradients have kernels, too
GRADIENTS_SINCE = (3, 7, 1)  # earlier versions of Triton have compiled such gradients wrongly for this GPU


def _has_kernels(q: Tensor, v: Tensor) -> bool:
    """Whether these heads run in kernels; others take the torch form."""
    types = torch.bfloat16, torch.float16, torch.float32
    return v.is_cuda and (q.shape[-1], v.shape[-1]) in KERNEL_SIZES and q.dtype in types and v.dtype in types


@chunk.register_kernel("cuda")
def _chunk_on_gpu(*given: Any) -> tuple[Tensor, ...]:
    if not _has_kernels(given[0], given[2]):
        say_torch_form(__name__, given[0], given[2], KERNEL_SIZES)
        return chunk_forward(*given)
    from . import head_decay_kernels as kernels

    with torch.cuda.device(given[0].get_device()):
        found: tuple[Tensor, ...] = kernels.chunk_forward(*given)
    return found


def _backward_in_torch(do: Tensor, dfinal: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """Gradients after kernels: from the states that sequences start with, what they need is made again."""
    *tensors, cu_seqlens, states = given[:6]
    (B, T), N = given[2].shape[:2], dfinal.shape[0]
    first_N = torch.arange(B, device=do.device) * T if cu_seqlens is None else cu_seqlens[:-1]
    state = states[first_N // (SEGMENT * CHUNK) + torch.arange(N, device=do.device)]
    again: list[Any] = [*tensors, state, cu_seqlens, given[-1]]
    backward: list[Any] = [do, dfinal, *tensors, cu_seqlens, *chunk_forward(*again)[2:], given[-1]]
    return chunk_backward(*backward)


@chunk_reverse.register_kernel("cuda")
def _chunk_reverse_on_gpu(do: Tensor, dfinal: Tensor, *given: Any) -> tuple[Tensor, ...]:
    if not _has_kernels(given[0], given[2]):
        return chunk_backward(do, dfinal, *given)
    from . import head_decay_kernels as kernels

    if wrong_gradients(kernels, GRADIENTS_SINCE):
        return _backward_in_torch(do, dfinal, *given)
    with torch.cuda.device(do.get_device()):
        found: tuple[Tensor, ...] = kernels.chunk_backward(do, dfinal, *given)
    return found


def _between(rows_MC: Tensor, columns_MC: Tensor, diagonal: int) -> Tensor:
    """`e^(rows_i - columns_j)` where j <= i + diagonal, zero elsewhere."""
    hidden_CC = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=rows_MC.device).triu_(1 + diagonal)
    return (rows_MC[:, :, None] - columns_MC[:, None, :]).masked_fill_(hidden_CC, float("-inf")).exp_()
