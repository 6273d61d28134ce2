"""Linear recurrence with a decay per key channel.

S' = Diag(exp(decay)) S;  S_next = S' + k v^T;  o = scale S_next^T q.

Axes: B rows of the batch, T tokens, H heads, K and V the two axes of the state S, N sequences, C tokens of
a chunk, Q queries of a group.
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
import torch.nn.functional as F
from torch import Tensor

from .place import Place
from .tiling import tile_bound, tiling_of
from .torch_form import say_torch_form
from .triton_versions import wrong_gradients

CHUNK = 64
NAMESPACE = __name__.replace(".", "_")
while hasattr(getattr(torch.ops, NAMESPACE), "decode"):
    NAMESPACE += "_"  # imported once more under the same name


def key_decay_grouped(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    decay_BTHK: Tensor,
    *,
    scale: float,
    place: Place,
    key: str,
) -> Tensor:
    """The recurrence over all tokens of the call: prefill, continuation or one decode step.

    q [B, T, H, K], k [B, T, H, K], v [B, T, H, V], decay [B, T, H, K].
    Head counts divide the largest one, H; head h of it uses head `h * n // H` of n. Here q has the largest;
    the state has the most that any other has. The memory of `place` holds, in float32 or, in a float64
    model, float64, `key`: S [N, H, K, V].
    Without a state, sequences start from zero. Returns o [B, T, H, V].
    """
    if torch.is_autocast_enabled(v_BTHV.device.type):
        v_BTHV = v_BTHV.to(torch.get_autocast_dtype(v_BTHV.device.type))
    o_BTHV = _recurrence(q_BTHK, k_BTHK, v_BTHV, decay_BTHK, scale, place, key)
    return o_BTHV


def _recurrence(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, decay_BTHK: Tensor, scale: float, place: Place, key: str
) -> Tensor:
    """Read the state, take the form that fits the call, store the state."""
    cu_seqlens = place.layout.cu_seqlens
    state = place.read(key)
    one_token = q_BTHK.shape[1] == 1 and cu_seqlens is None and place.form == "auto"
    if state is not None and one_token and not torch.is_grad_enabled():
        if not place.in_place:
            state = state.clone()
        o_BHV: Tensor = decode(q_BTHK[:, 0], k_BTHK[:, 0], v_BTHV[:, 0], decay_BTHK[:, 0], state, scale)
        place.write(key, state)
        return o_BHV[:, None]
    # The queries of a group are tokens of their own; the first of them writes.
    length = q_BTHK.shape[1]
    group = q_BTHK.shape[2] // max(k_BTHK.shape[2], v_BTHV.shape[2], decay_BTHK.shape[2])
    if group > 1:
        q_BTHK = torch.unflatten(q_BTHK, 2, (-1, group)).transpose(2, 3).flatten(1, 2)
        k_BTHK = F.pad(k_BTHK[:, :, None], (0, 0, 0, 0, 0, group - 1)).flatten(1, 2)
        v_BTHV = F.pad(v_BTHV[:, :, None], (0, 0, 0, 0, 0, group - 1)).flatten(1, 2)
        decay_BTHK = F.pad(decay_BTHK[:, :, None], (0, 0, 0, 0, 0, group - 1)).flatten(1, 2)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens * group
    if place.form == "step":
        o_BTHV, final = token_loop(q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, cu_seqlens, scale)
    else:
        o_BTHV, final = chunk(q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, cu_seqlens, scale)[:2]
    place.write(key, final)
    o_BTHV = torch.unflatten(o_BTHV, 1, (length, group)).transpose(2, 3).flatten(2, 3)
    return o_BTHV


# One token at a time: the definition, and the decode step.


def token_loop(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    decay_BTHK: Tensor,
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
                q_BTHK[:, span], k_BTHK[:, span], v_BTHV[:, span], decay_BTHK[:, span], before, None, scale
            )
            parts.append(o)
            finals.append(final)
        parts.append(parts[0].new_zeros(1, v_BTHV.shape[1] - borders[-1], *parts[0].shape[2:]))
        return torch.cat(parts, 1), torch.cat(finals)
    H = max(q_BTHK.shape[2], k_BTHK.shape[2], v_BTHV.shape[2], decay_BTHK.shape[2])
    dtype = torch.float64 if v_BTHV.dtype == torch.float64 else torch.float32
    q = q_BTHK.to(dtype).repeat_interleave(H // q_BTHK.shape[2], 2)
    k = k_BTHK.to(dtype).repeat_interleave(H // k_BTHK.shape[2], 2)
    v = v_BTHV.to(dtype).repeat_interleave(H // v_BTHV.shape[2], 2)
    decay = decay_BTHK.to(dtype).repeat_interleave(H // decay_BTHK.shape[2], 2)
    B, T, _, K = q.shape
    S_BHKV = q.new_zeros(B, H, K, v.shape[3]) if state is None else state.to(dtype)
    outputs = []
    for t in range(T):
        q_BHK = q[:, t] * scale
        k_BHK = k[:, t]
        v_BHV = v[:, t]
        decay_BHK = decay[:, t]
        S_BHKV = S_BHKV * decay_BHK.exp()[:, :, :, None]
        S_BHKV = S_BHKV + k_BHK[:, :, :, None] * v_BHV[:, :, None, :]
        o_BHV = (S_BHKV * q_BHK[:, :, :, None]).sum(2)
        outputs.append(o_BHV)
    o_BTHV = torch.stack(outputs, 1) if outputs else v[:, :, :, :]
    return o_BTHV.to(v_BTHV.dtype), S_BHKV


def decode_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, decay_BHK: Tensor, S_BHKV: Tensor, scale: float
) -> Tensor:
    """One token for each sequence; the state is changed in place. Returns o [B, H, V]."""
    B, H, K, V = S_BHKV.shape
    S_AKV = S_BHKV.view(-1, K, V)
    q_AQK = q_BHK.reshape(B * H, -1, K).to(S_BHKV.dtype)
    k_AK = _flat(k_BHK, S_BHKV)
    v_AV = _flat(v_BHV, S_BHKV)
    decay_AK = _flat(decay_BHK, S_BHKV)
    S_AKV.mul_(decay_AK.exp()[:, :, None])
    S_AKV.baddbmm_(k_AK[:, :, None], v_AV[:, None])
    o_AQV = torch.bmm(q_AQK, S_AKV)
    return o_AQV.mul_(scale).view(B, -1, V).to(v_BHV.dtype)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs `[B, T, H, V]`, the final state `[N, H, K, V]`, and what the backward needs."""
    tiling = tiling_of(v, max(q.shape[2], k.shape[2], v.shape[2], decay.shape[2]), cu_seqlens, CHUNK)
    q_MCK = tiling.gather(q)
    k_MCK = tiling.gather(k)
    v_MCV = tiling.gather(v)
    decay_MCK = tiling.gather(decay)
    q_MCK.mul_(scale)
    states = tiling.states(state, q_MCK, v_MCV)
    G_MCK = decay_MCK.cumsum(1)  # 1
    all_MK1 = G_MCK[:, -1].exp()[:, :, None]
    out_MCK = (G_MCK[:, -1:] - G_MCK).exp()
    k_out_MCK = k_MCK * out_MCK
    in_MCK = G_MCK.exp()
    q_in_MCK = q_MCK * in_MCK
    qk_MCC = _pair(q_MCK, k_MCK, G_MCK, G_MCK, inclusive=True)  # 2
    o_MCV = torch.bmm(qk_MCC, v_MCV)  # 4
    for m, enter, leave in tiling.walk:
        S_AKV, S_next_AKV = states[enter], states[leave]
        torch.mul(S_AKV, all_MK1[m], out=S_next_AKV)  # 3
        S_next_AKV.baddbmm_(k_out_MCK[m].mT, v_MCV[m])
    S_MKV = tiling.incoming(states)
    o_MCV.baddbmm_(q_in_MCK, S_MKV)  # 4
    return (
        tiling.scatter(o_MCV, v, tiling.heads),
        tiling.final(states),
        tiling.padded(states, state=True),
        tiling.padded(qk_MCC),
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
    qk: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, decay and the initial state.

    The forward's steps in reverse, dS carried from the end.
    """
    tiling = tiling_of(v, max(q.shape[2], k.shape[2], v.shape[2], decay.shape[2]), cu_seqlens, CHUNK)
    q_MCK = tiling.gather(q)
    k_MCK = tiling.gather(k)
    v_MCV = tiling.gather(v)
    decay_MCK = tiling.gather(decay)
    q_MCK.mul_(scale)
    qk_MCC = qk[: tiling.tiles]
    do_MCV = tiling.gather(do)
    S_MKV = tiling.incoming(states)
    G_MCK = decay_MCK.cumsum(1)  # 1
    in_MCK = G_MCK.exp()
    out_MCK = (G_MCK[:, -1:] - G_MCK).exp()
    k_out_MCK = k_MCK * out_MCK
    all_MK1 = G_MCK[:, -1].exp()[:, :, None]
    q_in_MCK = q_MCK * in_MCK
    dqk_MCC = torch.bmm(do_MCV, v_MCV.mT).tril_()  # 4
    dv_MCV = torch.bmm(qk_MCC.mT, do_MCV)  # 4
    dq_MCK = torch.bmm(do_MCV, S_MKV.mT).mul_(in_MCK)  # 4
    own_qk_MC = dqk_MCC.diagonal(0, 1, 2).clone()  # 2
    dqk_MCC.tril_(-1)
    dq_MCK.add_(_apply(dqk_MCC, k_MCK, G_MCK, G_MCK, inclusive=False))  # 2
    dk_MCK = _apply_transposed(dqk_MCC, q_MCK, G_MCK, G_MCK, inclusive=False)  # 2
    dk_state_MCK = q_MCK.new_empty(tiling.tiles, CHUNK, q_MCK.shape[2])
    anchor_MK = q_MCK.new_empty(tiling.tiles, q_MCK.shape[2])
    dS = tiling.ranked(dfinal)
    for m, enter, _ in reversed(tiling.walk):
        S_AKV, dS_AKV = states[enter], dS[: m.stop - m.start]
        torch.mul(torch.bmm(v_MCV[m], dS_AKV.mT), out_MCK[m], out=dk_state_MCK[m])  # 3
        dv_MCV[m].baddbmm_(k_out_MCK[m], dS_AKV)  # 3
        anchor_MK[m] = (S_AKV * dS_AKV).sum(2)  # 3
        dS_AKV.mul_(all_MK1[m])  # 3
        dS_AKV.baddbmm_(q_in_MCK[m].mT, do_MCV[m])
    dG_MCK = q_MCK * dq_MCK - k_MCK * dk_MCK  # 1
    dG_MCK[:, -1] += anchor_MK * all_MK1[:, :, 0]
    ddecay_MCK = dG_MCK.flip(1).cumsum(1).flip(1)
    dG_after_MCK = k_MCK * dk_state_MCK
    ddecay_MCK[:, 1:] += dG_after_MCK[:, :-1].cumsum(1)
    dk_MCK.add_(dk_state_MCK)  # 3
    dq_MCK.addcmul_(k_MCK, own_qk_MC[:, :, None])  # 2
    dk_MCK.addcmul_(q_MCK, own_qk_MC[:, :, None])  # 2
    dq_MCK.mul_(scale)
    return (
        tiling.scatter(dq_MCK, q),
        tiling.scatter(dk_MCK, k),
        tiling.scatter(dv_MCV, v),
        tiling.scatter(ddecay_MCK, decay),
        tiling.unranked(dS),
    )


# The operations behind it, as autograd, autocast and the compiler know them.

_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor decay"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]

chunk = torch.library.custom_op(
    f"{NAMESPACE}::chunk",
    chunk_forward,
    mutates_args=(),
    schema=f"({_TENSORS}, Tensor? state, Tensor? cu_seqlens, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
chunk_reverse = torch.library.custom_op(
    f"{NAMESPACE}::chunk_reverse",
    chunk_backward,
    mutates_args=(),
    schema=f"(Tensor do, Tensor dfinal, {_TENSORS}, Tensor? cu_seqlens, "
    "Tensor states, Tensor qk, float scale) "
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
            q.new_empty(B, T, H, CHUNK),
        )
    return (
        v.new_empty(B, T, H, V),
        like.new_empty(N, H, K, V),
        like.new_empty(N * H + M, K, V),
        like.new_empty(M, CHUNK, CHUNK),
    )


@chunk_reverse.register_fake
def _chunk_reverse_shapes(*given: Any) -> tuple[Tensor, ...]:
    _, dfinal, *tensors = given
    like = (*tensors[:4], dfinal)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in like)


@torch.library.register_fake(f"{NAMESPACE}::decode", lib=_library)  # type: ignore[untyped-decorator]
def _decode_shapes(*given: Any) -> Tensor:
    q, v = given[0], given[2]
    shape = v.shape[0], q.shape[1], v.shape[2]
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


# On a GPU: key_decay_grouped_kernels.py, imported there only, since it needs Triton.


def _decode_on_gpu(*given: Any) -> Tensor:
    from . import key_decay_grouped_kernels as kernels

    with torch.cuda.device(given[0].get_device()):  # launches go to the current one
        o: Tensor = kernels.decode_step(*given)
    return o


_library.impl("decode", _decode_on_gpu, "CUDA")  # type: ignore[no-untyped-call]

# The (K, V) that there are kernels for, and the chunks between two states that they keep.
KERNEL_SIZES = {(32, 64)}
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
    from . import key_decay_grouped_kernels as kernels

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
    from . import key_decay_grouped_kernels as kernels

    if wrong_gradients(kernels, GRADIENTS_SINCE):
        return _backward_in_torch(do, dfinal, *given)
    with torch.cuda.device(do.get_device()):
        found: tuple[Tensor, ...] = kernels.chunk_backward(do, dfinal, *given)
    return found


# Products of rows that decay by channel. A chunk is halved again and again: the rows of the second half meet
# the columns of the first one with the decay taken from the border between them, so no exponent is positive.


def _halves(half: int, *tiles: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Every tile as its first and its second halves of blocks of `2 * half` rows."""
    blocks = [torch.unflatten(x, 1, (-1, 2, half)) for x in tiles]
    return [(x[:, :, 0], x[:, :, 1]) for x in blocks]


def _below(P_MCC: Tensor, half: int) -> Tensor:
    """The scores between second halves (rows) and first halves (columns), `[M, blocks, half, half]`."""
    size = (CHUNK // (2 * half), 2 * half)
    blocks = P_MCC.view(-1, *size, *size).diagonal(dim1=1, dim2=3)
    return blocks[:, half:, :half].permute(0, 3, 1, 2)


def _pair(x: Tensor, y: Tensor, Gx: Tensor, Gy: Tensor, *, inclusive: bool) -> Tensor:
    """`P_ij = sum_d x_id y_jd e^(Gx_id - Gy_jd)` for j < i, and for j = i where inclusive."""
    P_MCC = x.new_zeros(x.shape[0], CHUNK, CHUNK)
    half = CHUNK // 2
    while half:
        (_, rows), (columns, _), (_, G_rows), (G_columns, _) = _halves(half, x, y, Gx, Gy)
        border = G_columns[:, :, -1:]
        rows = rows * (G_rows - border).exp_()
        columns = columns * (border - G_columns).exp_()
        _below(P_MCC, half).copy_(rows @ columns.mT)
        half //= 2
    if inclusive:
        P_MCC.diagonal(dim1=1, dim2=2).copy_((x * y).sum(2))
    return P_MCC


def _apply(P: Tensor, y: Tensor, Gx: Tensor, Gy: Tensor, *, inclusive: bool) -> Tensor:
    """`x_i = sum_j P_ij y_j e^(Gx_i - Gy_j)` over j < i, and j = i where inclusive."""
    out = y * P.diagonal(dim1=1, dim2=2)[:, :, None] if inclusive else torch.zeros_like(y)
    half = CHUNK // 2
    while half:
        (columns, _), (_, G_rows), (G_columns, _), (_, target) = _halves(half, y, Gx, Gy, out)
        border = G_columns[:, :, -1:]
        columns = columns * (border - G_columns).exp_()
        target.addcmul_(_below(P, half) @ columns, (G_rows - border).exp_())
        half //= 2
    return out


def _apply_transposed(P: Tensor, x: Tensor, Gx: Tensor, Gy: Tensor, *, inclusive: bool) -> Tensor:
    """`y_j = sum_i P_ij x_i e^(Gx_i - Gy_j)` over i > j, and i = j where inclusive."""
    out = x * P.diagonal(dim1=1, dim2=2)[:, :, None] if inclusive else torch.zeros_like(x)
    half = CHUNK // 2
    while half:
        (_, rows), (_, G_rows), (G_columns, _), (target, _) = _halves(half, x, Gx, Gy, out)
        border = G_columns[:, :, -1:]
        rows = rows * (G_rows - border).exp_()
        target.addcmul_(_below(P, half).mT @ rows, (border - G_columns).exp_())
        half //= 2
    return out
