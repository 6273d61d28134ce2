"""Linear recurrence with a decay per key channel, as Triton kernels.

S' = Diag(exp(decay)) S;  S_next = S' + k v^T;  o = scale S_next^T q.

State and values are held transposed: `S_VK` with V value columns of a block and K keys, `v_VC` with C tokens of a
chunk; scores are `[J, C]`, J the token that wrote and C the one that reads. G is the running sum of the log decay
in a chunk. The numbers beside lines are those of the steps in `key_decay_grouped.py`.
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
COLUMNS = 64  # value columns of a program
CHANNELS = 32  # key channels at once
PREPARE_WARPS, PREPARE_STAGES = 8, 1
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


@triton.jit
def pair(
    P_JC, x_CK, y_CK, decay_CK, BEFORE: tl.constexpr,
    INCLUSIVE: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """P with `sum_k x_ik y_jk e^(G_ik - G_jk)` added for j < i, and j = i where INCLUSIVE; BEFORE: without decay_ik.

    Only blocks that meet, of 16 tokens, and no exponent is positive: within a block the second half's rows meet the
    first half's with the decay counted from the border between them, and halves are halved again and again. A block
    meets all before it with the decay counted from its own border.
    """
    B: tl.constexpr = C // 16
    K: tl.constexpr = decay_CK.shape[1]
    dtype: tl.constexpr = x_CK.dtype
    b_B, i_I = tl.arange(0, B), tl.arange(0, 16)
    decay_BIK = tl.reshape(decay_CK, [B, 16, K])
    G_BIK = tl.cumsum(decay_BIK, 1)  # within each block
    read_BIK = G_BIK - decay_BIK if BEFORE else G_BIK
    x_BIK, y_BIK = tl.reshape(x_CK, [B, 16, K]), tl.reshape(y_CK, [B, 16, K])
    P_BII = tl.zeros([B, 16, 16], tl.float32)
    if INCLUSIVE:
        own_BI1 = tl.sum(x_BIK.to(tl.float32) * y_BIK.to(tl.float32), 2)[:, :, None]
        P_BII += tl.where((i_I[:, None] == i_I[None, :])[None, :, :], own_BI1, 0.0)
    half = 8
    while half > 0:
        half_I = i_I // half
        border_1I1 = (half_I // 2 * 2 * half + half - 1)[None, :, None]
        border_BIK = tl.gather(G_BIK, tl.broadcast_to(border_1I1, [B, 16, K]), 1)
        second_1I1 = (half_I % 2 == 1)[None, :, None]
        near_BIK = tl.exp(tl.where(second_1I1, read_BIK - border_BIK, border_BIK - G_BIK))
        met_1II = ((half_I[:, None] + 1 == half_I[None, :]) & (half_I % 2 == 1)[None, :])[None, :, :]
        left_BIK, right_BIK = (x_BIK * near_BIK).to(dtype), (y_BIK * near_BIK).to(dtype)
        P_BII += tl.where(met_1II, dot(right_BIK, tl.permute(left_BIK, [0, 2, 1])), 0.0)
        half //= 2
    own_BIBI = (b_B[:, None] == b_B[None, :])[:, None, :, None]
    G_end_BK = tl.sum(tl.where((i_I == 15)[None, :, None], G_BIK, 0.0), 1)
    since_BIK, until_BIK = tl.exp(read_BIK), tl.exp(G_end_BK[:, None, :] - G_BIK)
    P_JC += tl.reshape(tl.where(own_BIBI, P_BII[:, :, None, :], 0.0), [C, C])
    P_JBI = tl.reshape(P_JC, [C, B, 16])
    left_BIK = (x_BIK * since_BIK).to(dtype)
    seen_BIK = tl.zeros([B, 16, K], tl.float32)  # rows before block b, decayed up to it
    for b in range(1, B):
        last_BK = (b_B == b - 1)[:, None]
        here_B11, here_1B1 = (b_B == b)[:, None, None], (b_B == b)[None, :, None]
        passed_11K = tl.exp(tl.sum(tl.where(last_BK, G_end_BK, 0.0), 0))[None, None, :]
        seen_BIK = tl.where(last_BK[:, :, None], y_BIK * until_BIK, seen_BIK * passed_11K)
        left_IK = tl.sum(tl.where(here_B11, left_BIK, 0.0), 0).to(dtype)
        P_JI = dot(tl.reshape(seen_BIK, [C, K]).to(dtype), tl.trans(left_IK))
        P_JBI += tl.where(here_1B1, P_JI[:, None, :], 0.0)
    return tl.reshape(P_JBI, [C, C])


# The form over chunks: what needs no state, for all chunks at once.


@triton.jit(do_not_specialize=["sequences", "length"])
def prepare(
    q, k, decay, q_in, qk, G_end, k_out, cu_seqlens, sequences, length,
    H: tl.constexpr, q_heads: tl.constexpr, k_heads: tl.constexpr, decay_heads: tl.constexpr, K: tl.constexpr,
    CHANNELS: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One program for each chunk and head."""
    h = tl.program_id(1)
    n, start, end = piece_of(tl.program_id(0), cu_seqlens, sequences, length, C, PACKED)
    q_tiles = tokens(q, end, h, H, q_heads, K, C, CHANNELS)
    k_tiles = tokens(k, end, h, H, k_heads, K, C, CHANNELS)
    decay_tiles = tokens(decay, end, h, H, decay_heads, K, C, CHANNELS)
    q_in_tiles = tokens(q_in, end, h, H, H, K, C, CHANNELS)
    qk_tiles = tokens(qk, end, h, H, H, C, C, C)
    k_out_tiles = tokens(k_out, end, h, H, H, K, C, CHANNELS)
    qk_JC = tl.zeros([C, C], tl.float32)
    for channel in range(0, K, CHANNELS):
        q_CK = q_tiles.load([start, channel])
        k_CK = k_tiles.load([start, channel])
        decay_CK = decay_tiles.load([start, channel]).to(tl.float32)
        qk_JC = pair(qk_JC, q_CK, k_CK, decay_CK, False, True, C)  # 2
    qk_tiles.store([start, 0], tl.trans(qk_JC).to(qk.dtype.element_ty))
    for channel in range(0, K, CHANNELS):
        q_CK = q_tiles.load([start, channel])
        decay_CK = decay_tiles.load([start, channel]).to(tl.float32)
        in_CK = tl.exp(tl.cumsum(decay_CK, 0))
        q_in_tiles.store([start, channel], (q_CK * in_CK).to(q_CK.dtype))
        channel_K = channel + tl.arange(0, CHANNELS)
        at_K = G_end + (tl.program_id(0).to(tl.int64) * H + h) * K + channel_K
        tl.store(at_K, tl.sum(decay_CK, 0), mask=channel_K < K)
        k_CK = k_tiles.load([start, channel])
        out_CK = tl.exp(tl.sum(decay_CK, 0)[None, :] - tl.cumsum(decay_CK, 0))
        k_out_tiles.store([start, channel], (k_CK * out_CK).to(k_CK.dtype))


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
    v, q_in, qk, G_end, k_out, state, o, states, final,
    cu_seqlens, sequences, slots, length, span, scale,
    H: tl.constexpr, v_heads: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, V: tl.constexpr,
    COLUMNS: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr, SEGMENT: tl.constexpr, INITIAL: tl.constexpr,
):  # fmt: skip
    """Carry the state through a span of tokens: one program for each block of value columns, span and head."""
    h = tl.program_id(1)
    n, opening, end = piece_of(tl.program_id(2), cu_seqlens, sequences, length, span, PACKED)
    first, end = borders(n, cu_seqlens, length, PACKED)
    if (opening >= end) & (opening > first):
        return
    closing = tl.minimum(opening + span, end)
    column = tl.program_id(0) * COLUMNS
    channel_K = tl.arange(0, BLOCK_K)
    q_in_tiles = tokens(q_in, end, h, H, H, K, C, BLOCK_K)
    v_tiles = tokens(v, end, h, H, v_heads, V, C, COLUMNS)
    qk_tiles = tokens(qk, end, h, H, H, C, C, C)
    k_out_tiles = tokens(k_out, end, h, H, H, K, C, BLOCK_K)
    o_tiles = tokens(o, end, h, H, H, V, C, COLUMNS)
    states_tiles = matrices(states, slots * H, K, V, BLOCK_K, COLUMNS)
    dtype: tl.constexpr = q_in.dtype.element_ty
    S_VK = state_before(state, 0, column, H, K, V, BLOCK_K, COLUMNS, INITIAL)
    for kept in range(opening - (opening - first) % (SEGMENT * C), closing, SEGMENT * C):
        if kept >= opening:
            segment = kept // (SEGMENT * C) + n
            put_state(states_tiles, S_VK, segment * H + h, 0, column)
        for start in range(tl.maximum(kept, opening), tl.minimum(kept + SEGMENT * C, closing), C):
            q_in_CK = q_in_tiles.load([start, 0])
            v_VC = tl.trans(v_tiles.load([start, column]))
            qk_JC = tl.trans(qk_tiles.load([start, 0]))
            G_end_K = tl.load(
                G_end + (tl.cast(start // C + n, tl.int64) * H + h) * K + channel_K,
                mask=channel_K < K,
                other=0.0,
            )
            k_out_CK = k_out_tiles.load([start, 0])
            o_VC = dot(S_VK.to(dtype), tl.trans(q_in_CK))  # 4
            o_VC += dot(v_VC.to(dtype), qk_JC.to(dtype))  # 4
            o_tiles.store([start, column], tl.trans(o_VC * scale).to(o.dtype.element_ty))
            S_VK *= tl.exp(G_end_K)[None, :]  # 3
            S_VK += dot(v_VC.to(dtype), k_out_CK)
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
    v, G_end, k_out, ends, decays, cu_seqlens, sequences, length, span,
    H: tl.constexpr, v_heads: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, V: tl.constexpr,
    COLUMNS: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """The state that a span makes of none, and its decay: a program for each block of value columns, span and head."""
    h = tl.program_id(1)
    row = tl.program_id(2) * H + h
    n, opening, end = piece_of(tl.program_id(2), cu_seqlens, sequences, length, span, PACKED)
    first, end = borders(n, cu_seqlens, length, PACKED)
    if opening + span >= end:
        return  # nothing follows
    column = tl.program_id(0) * COLUMNS
    channel_K = tl.arange(0, BLOCK_K)
    k_out_tiles = tokens(k_out, end, h, H, H, K, C, BLOCK_K)
    v_tiles = tokens(v, end, h, H, v_heads, V, C, COLUMNS)
    dtype: tl.constexpr = k_out.dtype.element_ty
    S_VK = tl.zeros([COLUMNS, BLOCK_K], tl.float32)
    total_K = tl.zeros([BLOCK_K], tl.float32)
    for start in range(opening, opening + span, C):
        G_end_K = tl.load(
            G_end + (tl.cast(start // C + n, tl.int64) * H + h) * K + channel_K, mask=channel_K < K, other=0.0
        )
        k_out_CK = k_out_tiles.load([start, 0])
        v_VC = tl.trans(v_tiles.load([start, column]))
        S_VK *= tl.exp(G_end_K)[None, :]  # 3
        S_VK += dot(v_VC.to(dtype), k_out_CK)
        total_K += G_end_K
    ends_tiles = matrices(ends, tl.num_programs(2) * H, K, V, BLOCK_K, COLUMNS)
    put_state(ends_tiles, S_VK, row, 0, column)
    at_K = decays + row.to(tl.int64) * K + channel_K
    tl.store(at_K, total_K, mask=(channel_K < K) & (column == 0))


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
    channel_K = tl.arange(0, BLOCK_K)
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
        total_K = tl.load(decays + row.to(tl.int64) * K + channel_K, mask=channel_K < K, other=0.0)
        S_KV = S_KV * tl.exp(total_K)[:, None] + end_KV
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    pieces = B * T // CHUNK + N
    q_in = q.new_empty(B, T, H, K)
    qk = q.new_empty(B, T, H, CHUNK)
    G_end = v.new_empty(pieces, H, K, dtype=torch.float32)
    k_out = q.new_empty(B, T, H, K)
    prepare[pieces, H](
        q, k, decay, q_in, qk, G_end, k_out, cu_seqlens, N, T, H=H, q_heads=q.shape[2], k_heads=k.shape[2],
        decay_heads=decay.shape[2], K=K, CHANNELS=min(CHANNELS, BLOCK_K), C=CHUNK,
        PACKED=cu_seqlens is not None, num_warps=PREPARE_WARPS, num_stages=PREPARE_STAGES,
    )  # fmt: skip
    span = span_of(B * T, N, blocks * H)
    spans = B * T // span + N
    if spans > N:
        ends = v.new_empty(spans, H, K, V, dtype=torch.float32)
        decays = v.new_empty(spans, H, K, dtype=torch.float32)
        starts = v.new_empty(spans, H, K, V, dtype=torch.float32)
        walk_ahead[blocks, H, spans](
            v, G_end, k_out, ends, decays, cu_seqlens, N, T, span, H=H, v_heads=v.shape[2], K=K,
            BLOCK_K=BLOCK_K, V=V, COLUMNS=COLUMNS, C=CHUNK, PACKED=cu_seqlens is not None,
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
        v, q_in, qk, G_end, k_out, state, o, states, final, cu_seqlens, N, slots, T, span, scale, H=H,
        v_heads=v.shape[2], K=K, BLOCK_K=BLOCK_K, V=V, COLUMNS=COLUMNS, C=CHUNK,
        PACKED=cu_seqlens is not None, SEGMENT=SEGMENT, INITIAL=state is not None, num_warps=WALK_WARPS,
        num_stages=WALK_STAGES,
    )  # fmt: skip
    return o, final, states, qk


# The backward: a walk from the end that carries dS, then one from the start of every segment that carries S.

BACK_COLUMNS, AGAIN_CHANNELS = 64, 32  # value columns and key channels of a program
BACK_WARPS, BACK_STAGES = 8, 1
AGAIN_WARPS, AGAIN_STAGES = 8, 1


@triton.jit
def put_anchor(anchors, states_tiles, dS_VK, row, column, K: tl.constexpr):
    """Where a segment starts, `sum_v S_kv dS_kv`."""
    channel_K = tl.arange(0, dS_VK.shape[1])
    S_KV = tl.reshape(states_tiles.load([row, 0, column]), [dS_VK.shape[1], dS_VK.shape[0]])
    at_K = anchors + row.to(tl.int64) * K + channel_K
    tl.store(at_K, tl.sum(S_KV * tl.trans(dS_VK), 1), mask=channel_K < K)


@triton.jit(do_not_specialize=["sequences", "length", "span"])
def walk_back_ahead(
    q, decay, do, ends, decays, cu_seqlens, sequences, length, span, scale,
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
    channel_K = tl.arange(0, BLOCK_K)
    q_tiles = tokens(q, end, h, H, q_heads, K, C, BLOCK_K)
    decay_tiles = tokens(decay, end, h, H, decay_heads, K, C, BLOCK_K)
    do_tiles = tokens(do, end, h, H, H, V, C, COLUMNS)
    dtype: tl.constexpr = do.dtype.element_ty
    dS_VK = tl.zeros([COLUMNS, BLOCK_K], tl.float32)
    total_K = tl.zeros([BLOCK_K], tl.float32)
    chunks = (tl.minimum(span, end - opening) + C - 1) // C
    for behind in tl.range(0, chunks, disable_licm=True):
        start = opening + (chunks - 1 - behind) * C
        G_CK = tl.cumsum(decay_tiles.load([start, 0]).to(tl.float32), 0)
        G_end_K = tl.sum(tl.where(tl.arange(0, C)[:, None] == C - 1, G_CK, 0.0), 0)
        dS_VK *= tl.exp(G_end_K)[None, :]  # 3
        decay_CK = decay_tiles.load([start, 0]).to(tl.float32)
        in_CK = tl.exp(tl.cumsum(decay_CK, 0))
        q_in_CK = (q_tiles.load([start, 0]) * in_CK).to(dtype)
        do_VC = tl.trans(do_tiles.load([start, column]))
        dS_VK += dot((do_VC * scale).to(dtype), q_in_CK)
        total_K += G_end_K
    ends_tiles = matrices(ends, tl.num_programs(2) * H, K, V, BLOCK_K, COLUMNS)
    put_state(ends_tiles, dS_VK, row, 0, column)
    at_K = decays + row.to(tl.int64) * K + channel_K
    tl.store(at_K, total_K, mask=(channel_K < K) & (column == 0))


@triton.jit(do_not_specialize=["sequences", "slots", "total", "length", "span"])
def walk_back(
    qk, do, k, decay, v, q, states, dfinal, dv, dqk, dk_state, anchors, dinitial,
    cu_seqlens, sequences, slots, total, length, span, scale,
    H: tl.constexpr, q_heads: tl.constexpr, k_heads: tl.constexpr, v_heads: tl.constexpr,
    decay_heads: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr,
    C: tl.constexpr, PACKED: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Carry dS from the end of a span of tokens: one program for each block of value columns, span and head.

    Rows that write get a part `d.._state` of their gradient from dS, still without their decay to the end of the chunk.
    With several blocks of value columns these and gradients of scores are parts of sums.
    """
    h = tl.program_id(1)
    n, opening, end = piece_of(tl.program_id(2), cu_seqlens, sequences, length, span, PACKED)
    first, end = borders(n, cu_seqlens, length, PACKED)
    if (opening >= end) & (opening > first):
        return
    block, column = tl.program_id(0), tl.program_id(0) * COLUMNS
    dtype: tl.constexpr = q.dtype.element_ty
    qk_tiles = tokens(qk, end, h, H, H, C, C, C)
    do_tiles = tokens(do, end, h, H, H, V, C, COLUMNS)
    k_tiles = tokens(k, end, h, H, k_heads, K, C, BLOCK_K)
    decay_tiles = tokens(decay, end, h, H, decay_heads, K, C, BLOCK_K)
    v_tiles = tokens(v, end, h, H, v_heads, V, C, COLUMNS)
    q_tiles = tokens(q, end, h, H, q_heads, K, C, BLOCK_K)
    dv_tiles = tokens(dv, end, h, H, H, V, C, COLUMNS)
    dqk_tiles = tokens(dqk + block.to(tl.int64) * total * H * C, end, h, H, H, C, C, C)
    dk_state_tiles = tokens(dk_state + block.to(tl.int64) * total * H * K, end, h, H, H, K, C, BLOCK_K)
    states_tiles = matrices(states, slots * H, K, V, BLOCK_K, COLUMNS)
    dfinal_tiles = matrices(dfinal, tl.num_programs(2) * H, K, V, BLOCK_K, COLUMNS)
    dinitial_tiles = matrices(dinitial, sequences * H, K, V, BLOCK_K, COLUMNS)
    dS_VK = state_at(dfinal_tiles, tl.program_id(2) * H + h, 0, column)
    chunks = (tl.minimum(span, end - opening) + C - 1) // C
    # Nothing is moved ahead of the loop: places in shared memory, known early, would fill the registers.
    for behind in tl.range(0, chunks, disable_licm=True):
        start = opening + (chunks - 1 - behind) * C
        qk_JC = tl.trans(qk_tiles.load([start, 0]))
        do_VC = tl.trans(do_tiles.load([start, column]))
        dv_VC = dot(do_VC, tl.trans(qk_JC)) * scale  # 4
        G_CK = tl.cumsum(decay_tiles.load([start, 0]).to(tl.float32), 0)
        G_end_K = tl.sum(tl.where(tl.arange(0, C)[:, None] == C - 1, G_CK, 0.0), 0)
        out_CK = tl.exp(G_end_K[None, :] - G_CK)
        k_out_CK = (k_tiles.load([start, 0]) * out_CK).to(dtype)
        dv_VC += dot(dS_VK.to(dtype), tl.trans(k_out_CK))  # 3
        dv_tiles.store([start, column], tl.trans(dv_VC).to(dv.dtype.element_ty))
        v_VC = tl.trans(v_tiles.load([start, column]))
        dqk_CJ = dot(tl.trans(do_VC), v_VC) * scale  # 4
        dqk_tiles.store([start, 0], dqk_CJ.to(dqk.dtype.element_ty))
        dk_state_CK = dot(tl.trans(v_VC), dS_VK.to(dtype))  # 3
        dk_state_tiles.store([start, 0], dk_state_CK.to(dk_state.dtype.element_ty))
        dS_VK *= tl.exp(G_end_K)[None, :]  # 3
        decay_CK = decay_tiles.load([start, 0]).to(tl.float32)
        in_CK = tl.exp(tl.cumsum(decay_CK, 0))
        q_in_CK = (q_tiles.load([start, 0]) * in_CK).to(dtype)
        dS_VK += dot((do_VC * scale).to(dtype), q_in_CK)
        if (start - first) % (SEGMENT * C) == 0:
            row = (first // (SEGMENT * C) + n + (start - first) // (SEGMENT * C)) * H + h
            put_anchor(anchors + block.to(tl.int64) * slots * H * K, states_tiles, dS_VK, row, column, K)
    if opening == first:
        put_state(dinitial_tiles, dS_VK, n * H + h, 0, column)


@triton.jit
def rows_of(x_CK, row_R):
    """The rows that are named."""
    return tl.gather(x_CK, tl.broadcast_to(row_R[:, None], [row_R.shape[0], x_CK.shape[1]]), 0)


@triton.jit
def pair_gradients(dP_CJ, x_CK, y_CK, decay_CK, BEFORE: tl.constexpr, C: tl.constexpr):
    """Gradients of x and y by those of `P_ij = sum_k x_ik y_jk e^(G_ik - G_jk)`, j < i; BEFORE: without decay_ik.

    Blocks are halved again and again: rows of a second half meet those of the first with the decay counted from the
    border between them. Down to halves of 16 tokens the rows that meet are put beside each other, C/2 of either kind;
    smaller ones meet within blocks of 16.
    """
    B: tl.constexpr = C // 16
    K: tl.constexpr = decay_CK.shape[1]
    dtype: tl.constexpr = x_CK.dtype
    b_B, i_I, c_C, r_R = tl.arange(0, B), tl.arange(0, 16), tl.arange(0, C), tl.arange(0, C // 2)
    G_CK = tl.cumsum(decay_CK, 0)
    above_CK = G_CK - decay_CK if BEFORE else G_CK
    dx_CK, dy_CK = tl.zeros([C, K], tl.float32), tl.zeros([C, K], tl.float32)
    half = C // 2
    while half > 8:
        first_R = r_R // half * 2 * half + r_R % half
        met_RR = r_R[:, None] // half == r_R[None, :] // half
        dP_RR = tl.where(met_RR, rows_of(tl.trans(rows_of(dP_CJ, first_R + half)), first_R), 0.0).to(dtype)
        second_C1 = (c_C // half % 2 == 1)[:, None]
        border_CK = rows_of(G_CK, c_C // (2 * half) * 2 * half + half - 1)
        near_CK = tl.exp(tl.where(second_C1, above_CK - border_CK, border_CK - G_CK))
        dx_RK = dot(tl.trans(dP_RR), rows_of((y_CK * near_CK).to(dtype), first_R))
        dy_RK = dot(dP_RR, rows_of((x_CK * near_CK).to(dtype), first_R + half))
        back_C = c_C // (2 * half) * half + c_C % half
        dx_CK += tl.where(second_C1, rows_of(dx_RK, back_C), 0.0) * near_CK
        dy_CK += tl.where(second_C1, 0.0, rows_of(dy_RK, back_C)) * near_CK
        half //= 2
    own_BIBJ = (b_B[:, None] == b_B[None, :])[:, None, :, None]
    dP_BIJ = tl.sum(tl.where(own_BIBJ, tl.reshape(dP_CJ, [B, 16, B, 16]), 0.0), 2)
    half = 8
    while half > 0:
        half_I = i_I // half
        second_C1 = (c_C // half % 2 == 1)[:, None]
        border_CK = rows_of(G_CK, c_C // (2 * half) * 2 * half + half - 1)
        near_CK = tl.exp(tl.where(second_C1, above_CK - border_CK, border_CK - G_CK))
        met_1IJ = ((half_I[:, None] == half_I[None, :] + 1) & (half_I % 2 == 1)[:, None])[None, :, :]
        met_BIJ = tl.where(met_1IJ, dP_BIJ, 0.0).to(dtype)
        x_BIK = tl.reshape((x_CK * near_CK).to(dtype), [B, 16, K])
        y_BIK = tl.reshape((y_CK * near_CK).to(dtype), [B, 16, K])
        dx_CK += tl.reshape(dot(met_BIJ, y_BIK), [C, K]) * near_CK
        dy_CK += tl.reshape(dot(tl.permute(met_BIJ, [0, 2, 1]), x_BIK), [C, K]) * near_CK
        half //= 2
    return dx_CK, dy_CK


@triton.jit
def earlier(x_CK):
    """For each token the sum over those before it in its chunk: the running sum of its neighbour, not a difference."""
    c_C1 = tl.arange(0, x_CK.shape[0])[:, None]
    sum_CK = tl.gather(tl.cumsum(x_CK, 0), tl.broadcast_to(tl.maximum(c_C1 - 1, 0), x_CK.shape), 0)
    return tl.where(c_C1 > 0, sum_CK, 0.0)


@triton.jit(do_not_specialize=["sequences", "total", "length"])
def walk_again(
    decay, do, q, dqk, k, dk_state, v, states, anchors, dq, ddecay, dk,
    cu_seqlens, sequences, total, length, scale, eps,
    H: tl.constexpr, q_heads: tl.constexpr, k_heads: tl.constexpr, v_heads: tl.constexpr,
    decay_heads: tl.constexpr, K: tl.constexpr, CHANNELS: tl.constexpr, V: tl.constexpr,
    BLOCK_V: tl.constexpr, C: tl.constexpr, PACKED: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Carry the state through a segment: one program for each block of key channels, segment and head.

    anchor_K is `sum_v S_kv dS_kv` where a chunk starts, then `e^G_end sum_v S_kv dS_next_kv`. eps: what of such a sum
    may be rounding.
    """
    h = tl.program_id(2)
    n, opening, end = piece_of(tl.program_id(1), cu_seqlens, sequences, length, SEGMENT * C, PACKED)
    row, channel = tl.program_id(1) * H + h, tl.program_id(0) * CHANNELS
    c_C1, j_1J = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    channel_K = channel + tl.arange(0, CHANNELS)
    dtype: tl.constexpr = q.dtype.element_ty
    decay_tiles = tokens(decay, end, h, H, decay_heads, K, C, CHANNELS)
    do_tiles = tokens(do, end, h, H, H, V, C, BLOCK_V)
    q_tiles = tokens(q, end, h, H, q_heads, K, C, CHANNELS)
    dqk_tiles = tokens(dqk, end, h, H, H, C, C, C)
    k_tiles = tokens(k, end, h, H, k_heads, K, C, CHANNELS)
    dk_state_tiles = tokens(dk_state, end, h, H, H, K, C, CHANNELS)
    v_tiles = tokens(v, end, h, H, v_heads, V, C, BLOCK_V)
    dq_tiles = tokens(dq, end, h, H, H, K, C, CHANNELS)
    ddecay_tiles = tokens(ddecay, end, h, H, H, K, C, CHANNELS)
    dk_tiles = tokens(dk, end, h, H, H, K, C, CHANNELS)
    states_tiles = matrices(states, tl.num_programs(1) * H, K, V, CHANNELS, BLOCK_V)
    S_VK = tl.trans(tl.reshape(states_tiles.load([row, channel, 0]), [CHANNELS, BLOCK_V]))
    anchor_K = tl.load(anchors + row.to(tl.int64) * K + channel_K, mask=channel_K < K, other=0.0)
    # Nothing is moved ahead of the loop: places in shared memory, known early, would fill the registers.
    for start in tl.range(opening, tl.minimum(opening + SEGMENT * C, end), C, disable_licm=True):
        decay_CK = decay_tiles.load([start, channel]).to(tl.float32)
        do_CV = do_tiles.load([start, 0])
        dq_CK = dot(do_CV, S_VK.to(dtype)) * tl.exp(tl.cumsum(decay_CK, 0)) * scale  # 4
        q_CK = q_tiles.load([start, channel])
        seen_K = tl.sum(q_CK * dq_CK, 0)
        dqk_CJ = dqk_tiles.load([start, 0])
        own_qk_C1 = tl.sum(tl.where(j_1J == c_C1, dqk_CJ, 0.0), 1).to(tl.float32)[:, None]
        k_CK = k_tiles.load([start, channel])
        read_CK, write_CK = pair_gradients(dqk_CJ, q_CK, k_CK, decay_CK, False, C)  # 2
        dq_CK += read_CK
        dk_CK = write_CK
        passed_CK = q_CK * dq_CK
        dq_CK += own_qk_C1 * k_CK  # 2
        dq_tiles.store([start, channel], dq_CK.to(dq.dtype.element_ty))
        G_CK = tl.cumsum(decay_tiles.load([start, channel]).to(tl.float32), 0)
        G_end_K = tl.sum(tl.where(c_C1 == C - 1, G_CK, 0.0), 0)
        left_K = anchor_K - seen_K
        anchor_K = tl.where((tl.exp(G_end_K) > 0.0) & (tl.abs(left_K) > eps * tl.abs(seen_K)), left_K, 0.0)
        out_CK = tl.exp(G_end_K[None, :] - G_CK)
        passed_CK -= k_CK * dk_CK
        dk_state_CK = dk_state_tiles.load([start, channel]) * out_CK
        written_CK = k_CK * dk_state_CK
        ddecay_CK = anchor_K[None, :] + tl.cumsum(passed_CK, 0, reverse=True)
        ddecay_CK += earlier(written_CK)
        ddecay_tiles.store([start, channel], ddecay_CK.to(ddecay.dtype.element_ty))
        anchor_K += tl.sum(written_CK, 0)
        dk_CK += dk_state_CK
        dk_CK += own_qk_C1 * q_CK  # 2
        dk_tiles.store([start, channel], dk_CK.to(dk.dtype.element_ty))
        S_VK *= tl.exp(G_end_K)[None, :]  # 3
        v_CV = v_tiles.load([start, 0])
        S_VK += dot(tl.trans(v_CV), (k_CK * out_CK).to(dtype))


def behind_spans(
    dfinal: Tensor,
    q: Tensor,
    decay: Tensor,
    do: Tensor,
    cu_seqlens: Tensor | None,
    span: int,
    spans: int,
    scale: float,
) -> Tensor:
    """The dS that each span ends with, `[spans, H, K, V]`, from that behind the sequences, `[N, H, K, V]`."""
    (N, H, K, V), T = dfinal.shape, do.shape[1]
    BLOCK_K, blocks = max(triton.next_power_of_2(K), 16), triton.cdiv(V, BACK_COLUMNS)
    ends = dfinal.new_empty(spans, H, K, V)
    decays = dfinal.new_empty(spans, H, K)
    lasts = dfinal.new_empty(spans, H, K, V)
    walk_back_ahead[blocks, H, spans](
        q, decay, do, ends, decays, cu_seqlens, N, T, span, scale, H=H, q_heads=q.shape[2],
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
    qk: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, decay and the initial state."""
    triton.set_allocator(_scratch)  # of this thread: autograd has one of its own
    narrow: dict[str, Any] = {"dtype": q.dtype, "device": v.device}
    wide: dict[str, Any] = {"dtype": torch.float32, "device": v.device}
    do, k, v = (x.to(q.dtype).contiguous() for x in (do, k, v))
    dfinal, q, decay = (x.contiguous() for x in (dfinal, q, decay))
    B, T, _, V = v.shape
    K, H = q.shape[3], max(q.shape[2], k.shape[2], v.shape[2], decay.shape[2])
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    slots = states.shape[0]
    BLOCK_K, BLOCK_V = max(triton.next_power_of_2(K), 16), max(triton.next_power_of_2(V), 16)
    blocks, parts = triton.cdiv(V, BACK_COLUMNS), triton.cdiv(K, min(AGAIN_CHANNELS, BLOCK_K))
    anchors, dinitial = torch.empty(blocks, slots, H, K, **wide), torch.empty_like(dfinal)
    make = torch.empty if cu_seqlens is None else torch.zeros
    dv = make(B, T, H, V, **narrow)
    dk_state = torch.empty(blocks, B, T, H, K, **(narrow if blocks == 1 else wide))
    dqk = torch.empty(blocks, B, T, H, CHUNK, **(narrow if blocks == 1 else wide))
    span = span_of(B * T, N, blocks * H)
    spans = B * T // span + N
    if spans > N:
        dfinal = behind_spans(dfinal, q, decay, do, cu_seqlens, span, spans, scale)
    walk_back[blocks, H, spans](
        qk, do, k, decay, v, q, states, dfinal, dv, dqk, dk_state, anchors, dinitial,
        cu_seqlens, N, slots, B * T, T, span, scale,
        H=H, q_heads=q.shape[2], k_heads=k.shape[2], v_heads=v.shape[2], decay_heads=decay.shape[2], K=K,
        BLOCK_K=BLOCK_K, V=V, COLUMNS=BACK_COLUMNS, C=CHUNK, PACKED=cu_seqlens is not None, SEGMENT=SEGMENT,
        num_warps=BACK_WARPS, num_stages=BACK_STAGES,
    )  # fmt: skip
    anchors, dk_state, dqk = (x[0] if blocks == 1 else x.sum(0) for x in (anchors, dk_state, dqk))
    dq, dk = (make(B, T, H, K, **narrow) for _ in range(2))
    ddecay = make(B, T, H, K, **wide)
    walk_again[parts, slots, H](
        decay, do, q, dqk, k, dk_state, v, states, anchors, dq, ddecay, dk,
        cu_seqlens, N, B * T, T, scale, 2.0**-20 if q.dtype == torch.float32 else 2.0**-9,
        H=H, q_heads=q.shape[2], k_heads=k.shape[2], v_heads=v.shape[2], decay_heads=decay.shape[2], K=K,
        CHANNELS=min(AGAIN_CHANNELS, BLOCK_K), V=V, BLOCK_V=BLOCK_V, C=CHUNK, PACKED=cu_seqlens is not None,
        SEGMENT=SEGMENT, num_warps=AGAIN_WARPS, num_stages=AGAIN_STAGES,
    )  # fmt: skip
    return (
        summed(dq[None], q),
        summed(dk[None], k),
        summed(dv[None], v),
        summed(ddecay[None], decay),
        dinitial,
    )


def summed(x: Tensor, like: Tensor) -> Tensor:
    """Sum `[parts, B, T, H, ...]` over its parts and over heads that share one of `like`."""
    if x.shape[0] > 1 or x.shape[3] > like.shape[2]:
        groups = x.unflatten(3, (like.shape[2], -1))
        return groups.sum((0, 4), dtype=torch.float32).to(like.dtype)
    return x[0].to(like.dtype)


# One token.


@triton.jit
def decode_kernel(
    q, k, v, decay, S, o, scale,
    q_B, q_H, k_B, k_H, v_B, v_H, decay_B, decay_H,
    k_heads: tl.constexpr, v_heads: tl.constexpr, decay_heads: tl.constexpr, H: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
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
    k_K = tl.load(k + b * k_B + h * k_heads // H * k_H + K_, in_K, 0.0).to(tl.float32)
    v_V = tl.load(v + b * v_B + h * v_heads // H * v_H + V_, in_V, 0.0).to(tl.float32)
    decay_K = tl.load(decay + b * decay_B + h * decay_heads // H * decay_H + K_, in_K, 0.0).to(tl.float32)
    S_KV *= tl.exp(decay_K)[:, None]
    S_KV += k_K[:, None] * v_V[None, :]
    for i in range(Q):  # the queries of a group read one state
        q_K = tl.load(q + b * q_B + (h * Q + i) * q_H + K_, in_K, 0.0).to(tl.float32)
        o_V = tl.sum(S_KV * q_K[:, None], 0) * scale
        tl.store(o + ((b * H + h) * Q + i) * V + V_, o_V, in_V)
    tl.store(at_KV, S_KV, in_KV)


def decode_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, decay_BHK: Tensor, S_BHKV: Tensor, scale: float
) -> Tensor:
    """One token for each sequence in one launch; the state is changed in place. Returns o [B, Q H, V]."""
    B, H, K, V = S_BHKV.shape
    if not S_BHKV.is_contiguous():
        raise ValueError("the state is changed in place and must be contiguous")
    q_BHK = q_BHK if q_BHK.stride(-1) == 1 else q_BHK.contiguous()
    k_BHK = k_BHK if k_BHK.stride(-1) == 1 else k_BHK.contiguous()
    v_BHV = v_BHV if v_BHV.stride(-1) == 1 else v_BHV.contiguous()
    decay_BHK = decay_BHK if decay_BHK.stride(-1) == 1 else decay_BHK.contiguous()
    o_BHV = v_BHV.new_empty(B, q_BHK.shape[1], V)
    block_K = 1 << (K - 1).bit_length()
    block_V = min(1 << (V - 1).bit_length(), max(4096 // block_K, 16))
    decode_kernel[B * H, triton.cdiv(V, block_V)](
        q_BHK, k_BHK, v_BHV, decay_BHK, S_BHKV, o_BHV, scale,
        q_BHK.stride(0), q_BHK.stride(1), k_BHK.stride(0), k_BHK.stride(1), v_BHV.stride(0), v_BHV.stride(1),
        decay_BHK.stride(0), decay_BHK.stride(1),
        k_BHK.shape[1], v_BHV.shape[1], decay_BHK.shape[1], H, q_BHK.shape[1] // H, K, V, block_K, block_V,
        num_warps=4,
    )  # fmt: skip
    return o_BHV
