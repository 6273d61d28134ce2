"""Linear recurrence with a decay per head, as Triton kernels.

S' = exp(decay) S;  S_next = S' + k v^T;  o = scale S_next^T q.

State and values are held transposed: `S_VK` with V value columns of a block and K keys, `v_VC` with C tokens of a
chunk; scores are `[J, C]`, J the token that wrote and C the one that reads. G is the running sum of the log decay
in a chunk. The numbers beside lines are those of the steps in `head_decay.py`.
"""

# mypy: disable-error-code="import,no-untyped-def,untyped-decorator,no-untyped-call,no-any-return,attr-defined,misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 64
SEGMENT = 64  # chunks between two states that are kept for the backward
MULTIPROCESSORS = 132
FEWEST, SHORTEST = 3, 16  # spans of a sequence, chunks of a span: fewer do not pay
COLUMNS = 32  # value columns of a program
PREPARE_WARPS, PREPARE_STAGES = 4, 1
WALK_WARPS, WALK_STAGES = 4, 1
CARRY_WARPS, CARRY_STAGES = 8, 1
CARRY_COLUMNS = 32


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory of a launch for the descriptors that its programs make."""
    return torch.empty(size, device="cuda", dtype=torch.int8)


# Where a program's tokens lie. Sequences are rows of a batch, or packed into one row with borders `cu_seqlens`.


@triton.jit
def borders(n, cu_seqlens, length, PACKED: tl.constexpr):
    """The first token of sequence n, and the first one behind it."""
    if PACKED:
        first, end = tl.load(cu_seqlens + n).to(tl.int32), tl.load(cu_seqlens + n + 1).to(tl.int32)
    else:
        first, end = n * length, (n + 1) * length
    return first, end


@triton.jit
def piece_of(number, cu_seqlens, sequences, length, TOKENS: tl.constexpr, PACKED: tl.constexpr):
    """The sequence of a piece of TOKENS tokens, and where the piece starts.

    Piece m of sequence n has the number `first // TOKENS + n + m`: no two share one, and no table is needed.
    """
    low, high = 0, sequences
    while high - low > 1:
        middle = (low + high) // 2
        first, end = borders(middle, cu_seqlens, length, PACKED)
        below = first // TOKENS + middle <= number
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    first, end = borders(low, cu_seqlens, length, PACKED)
    return low, first + (number - first // TOKENS - low) * TOKENS, end


# Tiles. What lies behind the end of a sequence is never read, nor written. Heads are shared by groups of the H heads
# of the state.


@triton.jit
def tokens(
    x, end, h, H: tl.constexpr, heads: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    """One head's rows up to `end`, as a descriptor of tiles `[C, BLOCK]`; zeros from WIDTH on."""
    first_row = x + h * heads // H * WIDTH
    return tl.make_tensor_descriptor(first_row, [end, WIDTH], [heads * WIDTH, 1], [C, BLOCK])


@triton.jit
def matrices(x, count, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, COLUMNS: tl.constexpr):
    """States `[count, K, V]` as a descriptor of tiles `[1, BLOCK_K, COLUMNS]`."""
    return tl.make_tensor_descriptor(x, [count, K, V], [K * V, V, 1], [1, BLOCK_K, COLUMNS])


@triton.jit
def state_at(x_tiles, row, channel, column):
    """Value columns of a state, `[COLUMNS, BLOCK_K]`."""
    x_1KV = x_tiles.load([row, channel, column])
    return tl.trans(tl.reshape(x_1KV, [x_1KV.shape[1], x_1KV.shape[2]]))


@triton.jit
def put_state(x_tiles, x_VK, row, channel, column):
    """Write them."""
    x_tiles.store([row, channel, column], tl.reshape(tl.trans(x_VK), [1, x_VK.shape[1], x_VK.shape[0]]))


@triton.jit
def scalars(x, start, inside_C, h, H: tl.constexpr, heads: tl.constexpr):
    """One number a token, `[C]`."""
    first = x + tl.cast(start, tl.int64) * heads + h * heads // H
    return tl.load(first + tl.arange(0, inside_C.shape[0]) * heads, mask=inside_C, other=0.0).to(tl.float32)


@triton.jit
def dot(a, b):
    """A matrix product; of float32 with three products in tf32, which together have float32's accuracy."""
    return tl.dot(a, b, input_precision="tf32x3")


# The walk from chunk to chunk.


@triton.jit
def state_before(
    state, channel, column, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, INITIAL: tl.constexpr,
):  # fmt: skip
    """Value columns of the state that a span begins with, zero if none is given."""
    S_VK = tl.zeros([COLUMNS, BLOCK], tl.float32)
    if INITIAL:
        state_tiles = matrices(state, tl.num_programs(2) * H, K, V, BLOCK, COLUMNS)
        S_VK += state_at(state_tiles, tl.program_id(2) * H + tl.program_id(1), channel, column)
    return S_VK


@triton.jit(do_not_specialize=["sequences", "slots", "length", "span"])
def walk(
    q, k, v, decay, state, o, states, final,
    cu_seqlens, sequences, slots, length, span, scale,
    H: tl.constexpr, q_heads: tl.constexpr, k_heads: tl.constexpr, v_heads: tl.constexpr,
    decay_heads: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, SEGMENT: tl.constexpr, INITIAL: tl.constexpr,
):  # fmt: skip
    """Carry the state through a span of tokens: one program for each block of value columns, span and head."""
    h = tl.program_id(1)
    n, opening, end = piece_of(tl.program_id(2), cu_seqlens, sequences, length, span, PACKED)
    first, end = borders(n, cu_seqlens, length, PACKED)
    if (opening >= end) & (opening > first):
        return
    closing = tl.minimum(opening + span, end)
    column = tl.program_id(0) * COLUMNS
    j_J1, c_1C = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    q_tiles = tokens(q, end, h, H, q_heads, K, C, BLOCK_K)
    k_tiles = tokens(k, end, h, H, k_heads, K, C, BLOCK_K)
    v_tiles = tokens(v, end, h, H, v_heads, V, C, COLUMNS)
    o_tiles = tokens(o, end, h, H, H, V, C, COLUMNS)
    states_tiles = matrices(states, slots * H, K, V, BLOCK_K, COLUMNS)
    dtype: tl.constexpr = q.dtype.element_ty
    S_VK = state_before(state, 0, column, H, K, V, BLOCK_K, COLUMNS, INITIAL)
    for kept in range(opening - (opening - first) % (SEGMENT * C), closing, SEGMENT * C):
        if kept >= opening:
            segment = kept // (SEGMENT * C) + n
            put_state(states_tiles, S_VK, segment * H + h, 0, column)
        for start in range(tl.maximum(kept, opening), tl.minimum(kept + SEGMENT * C, closing), C):
            inside_C = start + tl.arange(0, C) < end
            q_CK = q_tiles.load([start, 0])
            decay_C = scalars(decay, start, inside_C, h, H, decay_heads)
            k_CK = k_tiles.load([start, 0])
            v_VC = tl.trans(v_tiles.load([start, column]))
            G_C = tl.cumsum(decay_C, 0)
            in_C = tl.exp(G_C)
            between_inclusive_JC = tl.exp(tl.where(j_J1 <= c_1C, G_C[None, :] - G_C[:, None], -float("inf")))
            G_end = tl.sum(tl.where(tl.arange(0, C) == C - 1, G_C, 0.0), 0)
            out_C = tl.exp(G_end - G_C)
            o_VC = dot(S_VK.to(dtype), tl.trans(q_CK)) * in_C[None, :]  # 4
            qk_JC = dot(k_CK, tl.trans(q_CK)) * between_inclusive_JC  # 2
            o_VC += dot(v_VC.to(dtype), qk_JC.to(dtype))  # 4
            o_tiles.store([start, column], tl.trans(o_VC * scale).to(o.dtype.element_ty))
            S_VK *= tl.exp(G_end)  # 3
            S_VK += dot((v_VC * out_C[None, :]).to(dtype), k_CK)
    if closing == end:
        final_tiles = matrices(final, sequences * H, K, V, BLOCK_K, COLUMNS)
        put_state(final_tiles, S_VK, n * H + h, 0, column)


# Where there are fewer sequences and heads than multiprocessors, a sequence is walked in spans beside each other. Each
# begins with the state that `carry` takes there, from what `walk_ahead` found the spans before it to do; on the
# way back, with what `carry` brings from the spans behind it.


def span_of(tokens: int, sequences: int, programs: int) -> int:
    """Tokens of a span, of which each takes so many programs; more than there are if sequences are walked whole."""
    spans = MULTIPROCESSORS // programs  # that run at once
    if spans >= FEWEST * sequences:
        span = max(triton.cdiv(tokens, spans * CHUNK), SHORTEST) * CHUNK
        if tokens > (FEWEST - 1) * span * sequences:
            return span
    return (tokens // CHUNK + 1) * CHUNK


@triton.jit(do_not_specialize=["sequences", "length", "span"])
def walk_ahead(
    k, v, decay, ends, decays, cu_seqlens, sequences, length, span,
    H: tl.constexpr, k_heads: tl.constexpr, v_heads: tl.constexpr, decay_heads: tl.constexpr, K: tl.constexpr,
    BLOCK_K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """The state that a span makes of none, and its decay: a program for each block of value columns, span and head."""
    h = tl.program_id(1)
    row = tl.program_id(2) * H + h
    n, opening, end = piece_of(tl.program_id(2), cu_seqlens, sequences, length, span, PACKED)
    first, end = borders(n, cu_seqlens, length, PACKED)
    if opening + span >= end:
        return  # nothing follows
    column = tl.program_id(0) * COLUMNS
    k_tiles = tokens(k, end, h, H, k_heads, K, C, BLOCK_K)
    v_tiles = tokens(v, end, h, H, v_heads, V, C, COLUMNS)
    dtype: tl.constexpr = k.dtype.element_ty
    S_VK = tl.zeros([COLUMNS, BLOCK_K], tl.float32)
    total = 0.0
    for start in range(opening, opening + span, C):
        inside_C = start + tl.arange(0, C) < end
        decay_C = scalars(decay, start, inside_C, h, H, decay_heads)
        k_CK = k_tiles.load([start, 0])
        v_VC = tl.trans(v_tiles.load([start, column]))
        G_C = tl.cumsum(decay_C, 0)
        G_end = tl.sum(tl.where(tl.arange(0, C) == C - 1, G_C, 0.0), 0)
        out_C = tl.exp(G_end - G_C)
        S_VK *= tl.exp(G_end)  # 3
        S_VK += dot((v_VC * out_C[None, :]).to(dtype), k_CK)
        total += G_end
    ends_tiles = matrices(ends, tl.num_programs(2) * H, K, V, BLOCK_K, COLUMNS)
    put_state(ends_tiles, S_VK, row, 0, column)
    tl.store(decays + row, total, mask=column == 0)


@triton.jit(do_not_specialize=["spans", "length", "span"])
def carry(
    ends, decays, state, starts, cu_seqlens, spans, length, span,
    H: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr,
    PACKED: tl.constexpr, INITIAL: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The state that each span begins with, or going BACK the dS that it ends with.

    One program for each block of value columns, sequence and head.
    """
    n, h = tl.program_id(2), tl.program_id(1)
    first, end = borders(n, cu_seqlens, length, PACKED)
    column = tl.program_id(0) * COLUMNS
    ends_tiles = matrices(ends, spans * H, K, V, BLOCK_K, COLUMNS)
    starts_tiles = matrices(starts, spans * H, K, V, BLOCK_K, COLUMNS)
    S_KV = tl.zeros([BLOCK_K, COLUMNS], tl.float32)
    if INITIAL:
        state_tiles = matrices(state, tl.num_programs(2) * H, K, V, BLOCK_K, COLUMNS)
        S_KV += tl.reshape(state_tiles.load([n * H + h, 0, column]), [BLOCK_K, COLUMNS])
    row = (first // span + n) * H + h
    if BACK:
        row += tl.maximum(end - first - 1, 0) // span * H  # of the last span
    starts_tiles.store([row, 0, column], tl.reshape(S_KV, [1, BLOCK_K, COLUMNS]))
    for _ in range(first + span, end, span):
        end_KV = tl.reshape(ends_tiles.load([row, 0, column]), [BLOCK_K, COLUMNS])
        S_KV = S_KV * tl.exp(tl.load(decays + row)) + end_KV
        row += -H if BACK else H
        starts_tiles.store([row, 0, column], tl.reshape(S_KV, [1, BLOCK_K, COLUMNS]))


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
    triton.set_allocator(_scratch)  # of this thread: autograd has one of its own
    q, k, v, decay = q.contiguous(), k.to(q.dtype).contiguous(), v.contiguous(), decay.contiguous()
    state = None if state is None else state.contiguous()
    B, T, _, V = v.shape
    K, H = q.shape[3], max(q.shape[2], k.shape[2], v.shape[2], decay.shape[2])
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    o = v.new_empty(B, T, H, V) if cu_seqlens is None else v.new_zeros(B, T, H, V)
    slots = B * T // (SEGMENT * CHUNK) + N
    states = v.new_empty(slots, H, K, V, dtype=torch.float32)
    final = v.new_empty(N, H, K, V, dtype=torch.float32)
    BLOCK_K, blocks = max(triton.next_power_of_2(K), 16), triton.cdiv(V, COLUMNS)
    span = span_of(B * T, N, blocks * H)
    spans = B * T // span + N
    if spans > N:
        ends = v.new_empty(spans, H, K, V, dtype=torch.float32)
        decays = v.new_empty(spans, H, 1, dtype=torch.float32)
        starts = v.new_empty(spans, H, K, V, dtype=torch.float32)
        walk_ahead[blocks, H, spans](
            k, v, decay, ends, decays, cu_seqlens, N, T, span, H=H, k_heads=k.shape[2], v_heads=v.shape[2],
            decay_heads=decay.shape[2], K=K, BLOCK_K=BLOCK_K, V=V, COLUMNS=COLUMNS, C=CHUNK,
            PACKED=cu_seqlens is not None,
            num_warps=WALK_WARPS, num_stages=WALK_STAGES,
        )  # fmt: skip
        carry[triton.cdiv(V, CARRY_COLUMNS), H, N](
            ends, decays, state, starts, cu_seqlens, spans, T, span,
            H=H, K=K, BLOCK_K=BLOCK_K, V=V, COLUMNS=CARRY_COLUMNS,
            PACKED=cu_seqlens is not None, INITIAL=state is not None, BACK=False,
            num_warps=CARRY_WARPS, num_stages=CARRY_STAGES,
        )  # fmt: skip
        state = starts
    walk[blocks, H, spans](
        q, k, v, decay, state, o, states, final, cu_seqlens, N, slots, T, span, scale, H=H,
        q_heads=q.shape[2], k_heads=k.shape[2], v_heads=v.shape[2], decay_heads=decay.shape[2], K=K,
        BLOCK_K=BLOCK_K, V=V, COLUMNS=COLUMNS, C=CHUNK, PACKED=cu_seqlens is not None, SEGMENT=SEGMENT,
        INITIAL=state is not None, num_warps=WALK_WARPS, num_stages=WALK_STAGES,
    )  # fmt: skip
    return o, final, states


# The backward: a walk from the end that carries dS, then one from the start of every segment that carries S.

BACK_COLUMNS = 32  # value columns of a program
BACK_WARPS, BACK_STAGES = 8, 1
AGAIN_CHANNELS = 32  # key channels of a program
AGAIN_COLUMNS = 32  # value columns that it sums over at once
AGAIN_WARPS, AGAIN_STAGES = 8, 1


@triton.jit
def put_scalars(x, value_C, start, inside_C, h, H: tl.constexpr):
    """Write one number a token, `[C]`."""
    first = x + tl.cast(start, tl.int64) * H + h
    tl.store(first + tl.arange(0, inside_C.shape[0]) * H, value_C, mask=inside_C)


@triton.jit
def after(x_C):
    """For each token the sum over all later ones of its chunk: the running sum of its neighbour, not a difference."""
    c_C, last = tl.arange(0, x_C.shape[0]), x_C.shape[0] - 1
    sum_C = tl.gather(tl.cumsum(x_C, 0, reverse=True), tl.minimum(c_C + 1, last), 0)
    return tl.where(c_C < last, sum_C, 0.0)


@triton.jit
def earlier(x_C):
    """For each token the sum over all earlier ones of its chunk, likewise."""
    c_C = tl.arange(0, x_C.shape[0])
    sum_C = tl.gather(tl.cumsum(x_C, 0), tl.maximum(c_C - 1, 0), 0)
    return tl.where(c_C > 0, sum_C, 0.0)


@triton.jit(do_not_specialize=["sequences", "length", "span"])
def walk_back_ahead(
    decay, do, q, ends, decays, cu_seqlens, sequences, length, span, scale,
    H: tl.constexpr, q_heads: tl.constexpr, decay_heads: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr,
    V: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """The dS that a span makes of none, and its decay: a program for each block of value columns, span and head."""
    h = tl.program_id(1)
    row = tl.program_id(2) * H + h
    n, opening, end = piece_of(tl.program_id(2), cu_seqlens, sequences, length, span, PACKED)
    first, end = borders(n, cu_seqlens, length, PACKED)
    if (opening == first) | (opening >= end):
        return  # nothing stands before it
    column = tl.program_id(0) * COLUMNS
    do_tiles = tokens(do, end, h, H, H, V, C, COLUMNS)
    q_tiles = tokens(q, end, h, H, q_heads, K, C, BLOCK_K)
    dtype: tl.constexpr = do.dtype.element_ty
    dS_VK = tl.zeros([COLUMNS, BLOCK_K], tl.float32)
    total = 0.0
    chunks = (tl.minimum(span, end - opening) + C - 1) // C
    for behind in tl.range(0, chunks, disable_licm=True):
        start = opening + (chunks - 1 - behind) * C
        inside_C = start + tl.arange(0, C) < end
        decay_C = scalars(decay, start, inside_C, h, H, decay_heads)
        G_C = tl.cumsum(decay_C, 0)
        G_end = tl.sum(tl.where(tl.arange(0, C) == C - 1, G_C, 0.0), 0)
        dS_VK *= tl.exp(G_end)  # 3
        do_VC = tl.trans(do_tiles.load([start, column]))
        in_C = tl.exp(G_C)
        q_CK = q_tiles.load([start, 0])
        dS_VK += dot((do_VC * (scale * in_C)[None, :]).to(dtype), q_CK)
        total += G_end
    ends_tiles = matrices(ends, tl.num_programs(2) * H, K, V, BLOCK_K, COLUMNS)
    put_state(ends_tiles, dS_VK, row, 0, column)
    tl.store(decays + row, total, mask=column == 0)


@triton.jit(do_not_specialize=["sequences", "slots", "total", "length", "span"])
def walk_back(
    v, do, decay, k, q, dfinal, written, dv, dk, dstates, dinitial,
    cu_seqlens, sequences, slots, total, length, span, scale,
    H: tl.constexpr, q_heads: tl.constexpr, k_heads: tl.constexpr, v_heads: tl.constexpr,
    decay_heads: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Carry dS from the end of a span of tokens: one program for each block of value columns, span and head."""
    h = tl.program_id(1)
    n, opening, end = piece_of(tl.program_id(2), cu_seqlens, sequences, length, span, PACKED)
    first, end = borders(n, cu_seqlens, length, PACKED)
    if (opening >= end) & (opening > first):
        return
    block = tl.program_id(0).to(tl.int64) * total * H  # rows of earlier blocks
    column = tl.program_id(0) * COLUMNS
    j_J1, c_1C = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    dtype: tl.constexpr = do.dtype.element_ty
    v_tiles = tokens(v, end, h, H, v_heads, V, C, COLUMNS)
    do_tiles = tokens(do, end, h, H, H, V, C, COLUMNS)
    k_tiles = tokens(k, end, h, H, k_heads, K, C, BLOCK_K)
    q_tiles = tokens(q, end, h, H, q_heads, K, C, BLOCK_K)
    dv_tiles = tokens(dv, end, h, H, H, V, C, COLUMNS)
    dk_tiles = tokens(dk + block * K, end, h, H, H, K, C, BLOCK_K)
    dfinal_tiles = matrices(dfinal, tl.num_programs(2) * H, K, V, BLOCK_K, COLUMNS)
    dstates_tiles = matrices(dstates, slots * H, K, V, BLOCK_K, COLUMNS)
    dinitial_tiles = matrices(dinitial, sequences * H, K, V, BLOCK_K, COLUMNS)
    dS_VK = state_at(dfinal_tiles, tl.program_id(2) * H + h, 0, column)
    chunks = (tl.minimum(span, end - opening) + C - 1) // C
    for behind in tl.range(0, chunks, disable_licm=True):  # else addresses fill the registers
        start = opening + (chunks - 1 - behind) * C
        inside_C = start + tl.arange(0, C) < end
        v_VC = tl.trans(v_tiles.load([start, column]))
        do_VC = tl.trans(do_tiles.load([start, column]))
        decay_C = scalars(decay, start, inside_C, h, H, decay_heads)
        G_C = tl.cumsum(decay_C, 0)
        between_inclusive_JC = tl.exp(tl.where(j_J1 <= c_1C, G_C[None, :] - G_C[:, None], -float("inf")))
        dqk_JC = (dot(tl.trans(v_VC), do_VC) * scale * between_inclusive_JC).to(dtype)  # 4
        k_CK = k_tiles.load([start, 0])
        q_CK = q_tiles.load([start, 0])
        qk_JC = (dot(k_CK, tl.trans(q_CK)) * between_inclusive_JC * scale).to(dtype)  # 2
        G_end = tl.sum(tl.where(tl.arange(0, C) == C - 1, G_C, 0.0), 0)
        out_C = tl.exp(G_end - G_C)
        dv_VC = dot(dS_VK.to(dtype), tl.trans(k_CK)) * out_C[None, :]  # 3
        written_C = tl.sum(v_VC * dv_VC, 0)
        put_scalars(written + block, written_C, start, inside_C, h, H)
        dv_VC += dot(do_VC, tl.trans(qk_JC))  # 4
        dv_tiles.store([start, column], tl.trans(dv_VC).to(dv.dtype.element_ty))
        dk_KC = dot(tl.trans(dS_VK.to(dtype)), v_VC) * out_C[None, :]  # 3
        dk_KC += dot(tl.trans(q_CK), tl.trans(dqk_JC))  # 2
        dk_tiles.store([start, 0], tl.trans(dk_KC).to(dk.dtype.element_ty))
        dS_VK *= tl.exp(G_end)  # 3
        in_C = tl.exp(G_C)
        dS_VK += dot((do_VC * (scale * in_C)[None, :]).to(dtype), q_CK)
        if (start - first) % (SEGMENT * C) == 0:
            segment = first // (SEGMENT * C) + n + (start - first) // (SEGMENT * C)
            put_state(dstates_tiles, dS_VK, segment * H + h, 0, column)
    if opening == first:
        put_state(dinitial_tiles, dS_VK, n * H + h, 0, column)


@triton.jit
def state_of(
    x,
    channel,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """A block of key channels, and all value columns, of the state that a segment of chunks starts with."""
    states_tiles = matrices(x, tl.num_programs(1) * H, K, V, CHANNELS, BLOCK_V)
    row = tl.program_id(1) * H + tl.program_id(2)
    return state_at(states_tiles, row, channel, 0)


@triton.jit
def score_gradients(
    do_part_tiles, v_part_tiles, start, V: tl.constexpr, PART_V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """What scores receive, a few value columns at a time: `dP_ij = dz_i . y_j` of all pairs of tokens."""
    dqk_CJ = tl.zeros([C, C], tl.float32)
    # Unrolled, places in shared memory would fill the registers, and warps make products twice.
    for column in range(0, V, PART_V):
        do_CV = do_part_tiles.load([start, column])
        v_CV = v_part_tiles.load([start, column])
        dqk_CJ += dot(do_CV, tl.trans(v_CV))  # 4
    return dqk_CJ


@triton.jit
def pair_gradients(dqk_CJ, G_C, scale, q_CK, k_CK):
    """From scores to the products of their rows; what the decays between tokens receive."""
    c_C1, j_1J = tl.arange(0, q_CK.shape[0])[:, None], tl.arange(0, q_CK.shape[0])[None, :]
    dtype: tl.constexpr = q_CK.dtype
    between_CJ = tl.exp(tl.where(j_1J <= c_C1, G_C[:, None] - G_C[None, :], -float("inf")))
    dqk_CJ *= between_CJ  # 4
    met_CJ = scale * dqk_CJ * dot(q_CK, tl.trans(k_CK))
    met_CJ = tl.where(j_1J < c_C1, met_CJ, 0.0)
    near_C = tl.sum(met_CJ, 1) - tl.sum(met_CJ, 0)
    dqk_CJ = dqk_CJ.to(dtype)
    return dqk_CJ, near_C


@triton.jit
def decay_gradients(anchor, G_end, seen_C, near_C, written_C):
    """What the log decays of a chunk receive, and anchor, `<S, dS>`, behind it."""
    anchor = tl.where(tl.exp(G_end) > 0.0, anchor - tl.sum(seen_C), 0.0)
    ddecay_C = tl.cumsum(seen_C + near_C, 0, reverse=True) + anchor
    ddecay_C += earlier(written_C)
    anchor += tl.sum(written_C)
    return ddecay_C, anchor


@triton.jit(do_not_specialize=["sequences", "total", "length"])
def walk_again(
    decay, q, k, do, written, v, states, dstates, dq, ddecay,
    cu_seqlens, sequences, total, length, scale,
    H: tl.constexpr, q_heads: tl.constexpr, k_heads: tl.constexpr, v_heads: tl.constexpr,
    decay_heads: tl.constexpr, K: tl.constexpr, CHANNELS: tl.constexpr, V: tl.constexpr,
    BLOCK_V: tl.constexpr, PART_V: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Carry the state through a segment: one program for each block of key channels, segment and head."""
    h = tl.program_id(2)
    n, opening, end = piece_of(tl.program_id(1), cu_seqlens, sequences, length, SEGMENT * C, PACKED)
    block = tl.program_id(0).to(tl.int64) * total * H  # rows of earlier blocks
    channel = tl.program_id(0) * CHANNELS
    dtype: tl.constexpr = do.dtype.element_ty
    q_tiles = tokens(q, end, h, H, q_heads, K, C, CHANNELS)
    k_tiles = tokens(k, end, h, H, k_heads, K, C, CHANNELS)
    do_tiles = tokens(do, end, h, H, H, V, C, BLOCK_V)
    v_tiles = tokens(v, end, h, H, v_heads, V, C, BLOCK_V)
    dq_tiles = tokens(dq, end, h, H, H, K, C, CHANNELS)
    do_part_tiles = tokens(do, end, h, H, H, V, C, PART_V)
    v_part_tiles = tokens(v, end, h, H, v_heads, V, C, PART_V)
    S_VK = state_of(states, channel, H, K, V, CHANNELS, BLOCK_V)
    anchor = tl.sum(S_VK * state_of(dstates, channel, H, K, V, CHANNELS, BLOCK_V))
    for start in tl.range(opening, tl.minimum(opening + SEGMENT * C, end), C, disable_licm=True):
        inside_C = start + tl.arange(0, C) < end
        dqk_CJ = score_gradients(do_part_tiles, v_part_tiles, start, V, PART_V, C)
        decay_C = scalars(decay, start, inside_C, h, H, decay_heads)
        q_CK = q_tiles.load([start, channel])
        k_CK = k_tiles.load([start, channel])
        G_C = tl.cumsum(decay_C, 0)
        dqk_CJ, near_C = pair_gradients(dqk_CJ, G_C, scale, q_CK, k_CK)
        in_C = tl.exp(G_C)
        dq_CK = dot(do_tiles.load([start, 0]), S_VK.to(dtype)) * (scale * in_C)[:, None]  # 4
        seen_C = tl.sum(q_CK * dq_CK, 1)
        dq_CK += scale * dot(dqk_CJ, k_CK)  # 2
        dq_tiles.store([start, channel], dq_CK.to(dq.dtype.element_ty))
        G_end = tl.sum(tl.where(tl.arange(0, C) == C - 1, G_C, 0.0), 0)
        written_C = scalars(written, start, inside_C & (channel == 0), h, H, H)
        ddecay_C, anchor = decay_gradients(anchor, G_end, seen_C, near_C, written_C)  # 1
        put_scalars(ddecay + block, ddecay_C, start, inside_C, h, H)
        S_VK *= tl.exp(G_end)  # 3
        out_C = tl.exp(G_end - G_C)
        S_VK += dot((tl.trans(v_tiles.load([start, 0])) * out_C[None, :]).to(dtype), k_CK)


def behind_spans(
    dfinal: Tensor,
    decay: Tensor,
    do: Tensor,
    q: Tensor,
    cu_seqlens: Tensor | None,
    span: int,
    spans: int,
    scale: float,
) -> Tensor:
    """The dS that each span ends with, `[spans, H, K, V]`, from that behind the sequences, `[N, H, K, V]`."""
    (N, H, K, V), T = dfinal.shape, do.shape[1]
    BLOCK_K, blocks = max(triton.next_power_of_2(K), 16), triton.cdiv(V, BACK_COLUMNS)
    ends = dfinal.new_empty(spans, H, K, V)
    decays = dfinal.new_empty(spans, H, 1)
    lasts = dfinal.new_empty(spans, H, K, V)
    walk_back_ahead[blocks, H, spans](
        decay, do, q, ends, decays, cu_seqlens, N, T, span, scale, H=H, q_heads=q.shape[2],
        decay_heads=decay.shape[2], K=K, BLOCK_K=BLOCK_K, V=V, COLUMNS=BACK_COLUMNS, C=CHUNK,
        PACKED=cu_seqlens is not None,
        num_warps=BACK_WARPS, num_stages=BACK_STAGES,
    )  # fmt: skip
    carry[triton.cdiv(V, CARRY_COLUMNS), H, N](
        ends, decays, dfinal, lasts, cu_seqlens, spans, T, span,
        H=H, K=K, BLOCK_K=BLOCK_K, V=V, COLUMNS=CARRY_COLUMNS,
        PACKED=cu_seqlens is not None, INITIAL=True, BACK=True, num_warps=CARRY_WARPS, num_stages=CARRY_STAGES,
    )  # fmt: skip
    return lasts


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
    """Gradients of q, k, v, decay and the initial state."""
    triton.set_allocator(_scratch)  # of this thread: autograd has one of its own
    do, q, k, v, decay = (x.contiguous() for x in (do, q, k, v, decay))
    B, T, _, V = v.shape
    K, H = q.shape[3], max(q.shape[2], k.shape[2], v.shape[2], decay.shape[2])
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    BLOCK_K, blocks = max(triton.next_power_of_2(K), 16), triton.cdiv(V, BACK_COLUMNS)
    BLOCK_V, parts = max(triton.next_power_of_2(V), 16), triton.cdiv(K, min(AGAIN_CHANNELS, BLOCK_K))
    dfinal = dfinal.contiguous()
    dstates, dinitial = torch.empty_like(states), torch.empty_like(dfinal)
    make = torch.empty if cu_seqlens is None else torch.zeros
    narrow: dict[str, Any] = {"dtype": v.dtype, "device": v.device}
    wide: dict[str, Any] = {"dtype": torch.float32, "device": v.device}
    written = make(blocks, B, T, H, **wide)
    dv = make(B, T, H, V, **narrow)
    dk = make(blocks, B, T, H, K, **narrow)
    dq = make(1, B, T, H, K, **narrow)
    ddecay = make(parts, B, T, H, **wide)
    span = span_of(B * T, N, blocks * H)
    spans = B * T // span + N
    if spans > N:
        dfinal = behind_spans(dfinal, decay, do, q, cu_seqlens, span, spans, scale)
    walk_back[blocks, H, spans](
        v, do, decay, k, q, dfinal, written, dv, dk, dstates, dinitial,
        cu_seqlens, N, states.shape[0], B * T, T, span, scale,
        H=H, q_heads=q.shape[2], k_heads=k.shape[2], v_heads=v.shape[2], decay_heads=decay.shape[2], K=K,
        BLOCK_K=BLOCK_K, V=V, COLUMNS=BACK_COLUMNS, C=CHUNK, PACKED=cu_seqlens is not None, SEGMENT=SEGMENT,
        num_warps=BACK_WARPS, num_stages=BACK_STAGES,
    )  # fmt: skip
    written = written[0] if blocks == 1 else written.sum(0)
    walk_again[parts, states.shape[0], H](
        decay, q, k, do, written, v, states, dstates, dq, ddecay,
        cu_seqlens, N, B * T, T, scale,
        H=H, q_heads=q.shape[2], k_heads=k.shape[2], v_heads=v.shape[2], decay_heads=decay.shape[2], K=K,
        CHANNELS=min(AGAIN_CHANNELS, BLOCK_K), V=V, BLOCK_V=BLOCK_V, PART_V=min(AGAIN_COLUMNS, BLOCK_V),
        C=CHUNK, PACKED=cu_seqlens is not None, SEGMENT=SEGMENT, num_warps=AGAIN_WARPS,
        num_stages=AGAIN_STAGES,
    )  # fmt: skip
    return (
        summed(dq, q),
        summed(dk, k),
        summed(dv[None], v),
        summed(ddecay, decay),
        dinitial,
    )


def summed(x: Tensor, like: Tensor) -> Tensor:
    """Sum `[blocks, B, T, H, ...]` over blocks of value columns and over heads that share one of `like`."""
    if x.shape[0] > 1 or x.shape[3] > like.shape[2]:
        groups = x.unflatten(3, (like.shape[2], -1))
        return groups.sum((0, 4)).to(like.dtype)
    return x[0].to(like.dtype)


# One token.


@triton.jit
def decode_kernel(
    q, k, v, decay, S, o, scale,
    q_B, q_H, k_B, k_H, v_B, v_H, decay_B, decay_H,
    q_heads: tl.constexpr, k_heads: tl.constexpr, v_heads: tl.constexpr, decay_heads: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One token of one head of one sequence, and some columns of V: the state is read once and written once."""
    b = tl.program_id(0).to(tl.int64) // H
    h = tl.program_id(0).to(tl.int64) % H
    K_ = tl.arange(0, BLOCK_K)
    V_ = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    KV_ = K_[:, None] * V + V_[None, :]
    in_K, in_V = K_ < K, V_ < V
    in_KV = in_K[:, None] & in_V[None, :]
    at_KV = S + (b * H + h) * (K * V) + KV_
    S_KV = tl.load(at_KV, in_KV, 0.0)
    q_K = tl.load(q + b * q_B + h * q_heads // H * q_H + K_, in_K, 0.0).to(tl.float32)
    k_K = tl.load(k + b * k_B + h * k_heads // H * k_H + K_, in_K, 0.0).to(tl.float32)
    v_V = tl.load(v + b * v_B + h * v_heads // H * v_H + V_, in_V, 0.0).to(tl.float32)
    decay_ = tl.load(decay + b * decay_B + h * decay_heads // H * decay_H).to(tl.float32)
    S_KV *= tl.exp(decay_)
    S_KV += k_K[:, None] * v_V[None, :]
    o_V = tl.sum(S_KV * q_K[:, None], 0)
    tl.store(at_KV, S_KV, in_KV)
    tl.store(o + (b * H + h) * V + V_, o_V * scale, in_V)


def decode_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, decay_BH: Tensor, S_BHKV: Tensor, scale: float
) -> Tensor:
    """One token for each sequence in one launch; the state is changed in place. Returns o [B, H, V]."""
    B, H, K, V = S_BHKV.shape
    if not S_BHKV.is_contiguous():
        raise ValueError("the state is changed in place and must be contiguous")
    q_BHK = q_BHK if q_BHK.stride(-1) == 1 else q_BHK.contiguous()
    k_BHK = k_BHK if k_BHK.stride(-1) == 1 else k_BHK.contiguous()
    v_BHV = v_BHV if v_BHV.stride(-1) == 1 else v_BHV.contiguous()
    o_BHV = v_BHV.new_empty(B, H, V)
    block_K = 1 << (K - 1).bit_length()
    block_V = min(1 << (V - 1).bit_length(), max(4096 // block_K, 16))
    decode_kernel[B * H, triton.cdiv(V, block_V)](
        q_BHK, k_BHK, v_BHV, decay_BH, S_BHKV, o_BHV, scale,
        q_BHK.stride(0), q_BHK.stride(1), k_BHK.stride(0), k_BHK.stride(1), v_BHV.stride(0), v_BHV.stride(1),
        decay_BH.stride(0), decay_BH.stride(1),
        q_BHK.shape[1], k_BHK.shape[1], v_BHV.shape[1], decay_BH.shape[1], H, K, V, block_K, block_V,
        num_warps=4,
    )  # fmt: skip
    return o_BHV
