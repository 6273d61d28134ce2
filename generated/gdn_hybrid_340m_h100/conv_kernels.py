# mypy: disable-error-code="import,no-untyped-def,no-untyped-call,untyped-decorator,misc,assignment"
"""Causal depthwise convolutions with what follows them, several side by side in one launch.

Each branch computes `y = norm(activation(bias + sum_j weight[:, j] x_{t - width + 1 + j}))`, the norm within heads of
`SIZES[b]` channels. The tokens of all sequences are one row; a program takes `ROWS` strips of `STEPS` tokens of one
head and walks through them side by side, so that each entry is read once and a strip's first taps once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Words in tuples are wrapped in `tl.constexpr` where they are passed on: Triton 3.6 does not do so itself.
LENGTHS = ["tokens", "length", "sequences"]  # of the call: a new value is no reason to compile again
FORWARD_ENTRIES, FORWARD_STEPS = 1024, 16  # rows times columns of a program, and how many tokens a row walks
# The backward needs twice the registers, and walks further, since each strip goes beyond its end by the taps.
BACKWARD_ENTRIES, BACKWARD_STEPS = 512, 32


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation of z."""
    if ACTIVATION == "silu":
        return z * tl.sigmoid(z)
    elif ACTIVATION == "relu":
        return tl.maximum(z, 0.0)
    elif ACTIVATION == "gelu":
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    else:
        return z


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The derivative of the activation at z."""
    if ACTIVATION == "silu":
        s = tl.sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == "relu":
        return tl.where(z > 0.0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density
    else:
        return tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def scale_of(a_RK, NORM: tl.constexpr, EPS: tl.constexpr, SIZE: tl.constexpr):
    """What the norm multiplies each row with: `[ROWS, 1]`."""
    square_R = tl.sum(a_RK * a_RK, 1)
    if NORM == "rmsnorm":
        square_R = square_R / SIZE
    return tl.rsqrt(square_R + EPS)[:, None]


@triton.jit
def before_conv(
    z_RK, dy_RK, ACTIVATION: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, SIZE: tl.constexpr
):
    """The gradient of the convolution's result z from that of y."""
    if NORM == "none":
        return dy_RK * slope(z_RK, ACTIVATION)
    a_RK = activate(z_RK, ACTIVATION)
    scale_R1 = scale_of(a_RK, NORM, EPS, SIZE)
    y_RK = a_RK * scale_R1
    along_R1 = tl.sum(y_RK * dy_RK, 1)[:, None]
    if NORM == "rmsnorm":
        along_R1 = along_R1 / SIZE
    return scale_R1 * (dy_RK - y_RK * along_R1) * slope(z_RK, ACTIVATION)


@triton.jit
def find(token_R, tokens, length, sequence, cu_seqlens):
    """The sequence of each token and its place there; without `sequence` all have the same length."""
    if sequence is None:
        row_R = token_R // length
        place_R = token_R % length
    else:
        row_R = tl.load(sequence + token_R, mask=token_R < tokens, other=0)
        place_R = token_R - tl.load(cu_seqlens + row_R)
    return row_R, place_R


@triton.jit
def follow(token_R, row_R, place_R, tokens, length, sequence):
    """`find` for the tokens that follow."""
    if sequence is None:
        next_R = tl.where(place_R + 1 == length, row_R + 1, row_R)
    else:
        next_R = tl.load(sequence + token_R, mask=token_R < tokens, other=0)
    return next_R, tl.where(next_R == row_R, place_R + 1, 0)


@triton.jit
def first_taps(
    x, stride, past, b: tl.constexpr, token_R, row_R, place_R, tokens, sequences, channel_K, known_K, CHANNELS,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """The `WIDTH - 1` inputs before each token, oldest first: before the sequence its past, or zeros."""
    taps = ()
    for j in tl.static_range(WIDTH - 1):
        back = WIDTH - 1 - j
        inside_R1 = ((token_R < tokens) & (place_R >= back))[:, None]
        x_RK = tl.load(x + (token_R - back)[:, None] * stride + channel_K, inside_R1 & known_K, other=0.0)
        x_RK = x_RK.to(tl.float32)
        if past is not None:
            outside_R1 = ((token_R < tokens) & (place_R < back) & (row_R < sequences))[:, None]
            past_at = past[b] + (row_R * (WIDTH - 1) + j + place_R)[:, None] * CHANNELS + channel_K
            x_RK += tl.load(past_at, outside_R1 & known_K, other=0.0).to(tl.float32)
        taps = taps + (x_RK,)
    return taps


@triton.jit
def restart(
    taps, past, b: tl.constexpr, row_R, place_R, sequences, channel_K, known_K, CHANNELS, WIDTH: tl.constexpr
):
    """The taps; at the first token of a sequence those of `first_taps`: none crosses the border."""
    begins_R1 = (place_R == 0)[:, None]
    found = ()
    for j in tl.static_range(WIDTH - 1):
        before = 0.0
        if past is not None:
            past_at = past[b] + (row_R * (WIDTH - 1) + j)[:, None] * CHANNELS + channel_K
            own_RK = begins_R1 & (row_R < sequences)[:, None] & known_K
            before = tl.load(past_at, own_RK, other=0.0).to(tl.float32)
        found = found + (tl.where(begins_R1, before, taps[j]),)
    return found


@triton.jit
def weights_of(weight, channel_K, known_K, WIDTH: tl.constexpr):
    """The columns of the weight."""
    found = ()
    for j in tl.static_range(WIDTH):
        found = found + (tl.load(weight + channel_K * WIDTH + j, known_K, other=0.0).to(tl.float32),)
    return found


@triton.jit
def bias_of(bias, b: tl.constexpr, channel_K, known_K):
    """The bias, or zero."""
    if bias is None:
        return 0.0
    else:
        return tl.load(bias[b] + channel_K, known_K, other=0.0).to(tl.float32)


@triton.jit
def convolve(taps, weight, bias_K, WIDTH: tl.constexpr):
    """bias + sum_j weight[:, j] taps[j]."""
    z_RK = taps[0] * weight[0] + bias_K
    for j in tl.static_range(1, WIDTH):
        z_RK += taps[j] * weight[j]
    return z_RK


@triton.jit
def channels_of(head, SIZE: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """The channels of a head, and which of the columns hold one: `[1, COLUMNS]`."""
    k_K = tl.arange(0, COLUMNS)[None, :]
    channel_K = head * SIZE + k_K
    return channel_K, (k_K < SIZE) & (channel_K < CHANNELS)


@triton.jit
def forward_strips(
    x, stride, weight, bias, past, y, b: tl.constexpr, sequence, cu_seqlens, tokens, length, sequences, start_R, head,
    CHANNELS: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr,
    EPS: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """y of one head, for `STEPS` tokens from each of `start_R`."""
    channel_K, known_K = channels_of(head, SIZE, COLUMNS, CHANNELS)
    columns = weights_of(weight, channel_K, known_K, WIDTH)
    bias_K = bias_of(bias, b, channel_K, known_K)
    row_R, place_R = find(start_R, tokens, length, sequence, cu_seqlens)
    taps = first_taps(
        x, stride, past, b, start_R, row_R, place_R, tokens, sequences, channel_K, known_K, CHANNELS, WIDTH
    )
    for i in range(STEPS):
        token_R = start_R + i
        known_RK = (token_R < tokens)[:, None] & known_K
        x_RK = tl.load(x + token_R[:, None] * stride + channel_K, known_RK, other=0.0).to(tl.float32)
        taps = taps + (x_RK,)
        y_RK = activate(convolve(taps, columns, bias_K, WIDTH), ACTIVATION)
        if NORM != "none":
            y_RK = y_RK * scale_of(y_RK, NORM, EPS, SIZE)
        tl.store(y + token_R[:, None] * CHANNELS + channel_K, y_RK, known_RK)
        row_R, place_R = follow(token_R + 1, row_R, place_R, tokens, length, sequence)
        taps = restart(taps[1:], past, b, row_R, place_R, sequences, channel_K, known_K, CHANNELS, WIDTH)


@triton.jit(do_not_specialize=LENGTHS)
def conv_forward(
    x, strides, weight, bias, past, y, sequence, cu_seqlens, tokens, length, sequences,
    CHANNELS: tl.constexpr, SIZES: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATIONS: tl.constexpr,
    NORMS: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """y of every branch: a program is a block of tokens and one head of one branch."""
    start_R = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)) * STEPS
    head = tl.program_id(1)
    for b in tl.static_range(len(SIZES)):
        heads = (CHANNELS[b] + SIZES[b] - 1) // SIZES[b]
        if (head >= 0) & (head < heads):
            forward_strips(
                x[b], strides[b], weight[b], bias, past, y[b], b, sequence, cu_seqlens, tokens, length, sequences,
                start_R, head, CHANNELS[b], SIZES[b], COLUMNS[b], tl.constexpr(ACTIVATIONS[b]),
                tl.constexpr(NORMS[b]), EPS[b], WIDTH, STEPS,
            )  # fmt: skip
        head -= heads


@triton.jit
def backward_strips(
    dy, x, stride, weight, bias, past, dx, sums, b: tl.constexpr, sequence, cu_seqlens, tokens, length, sequences,
    start_R, head, CHANNELS: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """dx of one head, for `STEPS` tokens from each of `start_R`, and these tokens' share of dweight and dbias.

    dx_t takes from dz_t to dz_{t + WIDTH - 1}: the walk goes so much further, and stores what is complete.
    """
    channel_K, known_K = channels_of(head, SIZE, COLUMNS, CHANNELS)
    columns = weights_of(weight, channel_K, known_K, WIDTH)
    bias_K = bias_of(bias, b, channel_K, known_K)
    row_R, place_R = find(start_R, tokens, length, sequence, cu_seqlens)
    taps = first_taps(
        x, stride, past, b, start_R, row_R, place_R, tokens, sequences, channel_K, known_K, CHANNELS, WIDTH
    )
    zero_RK = tl.zeros([start_R.shape[0], COLUMNS], tl.float32)
    waiting = (zero_RK,) * (WIDTH - 1)  # dx of the last tokens, oldest first
    dweight = (zero_RK,) * WIDTH
    dbias = zero_RK
    for i in range(STEPS + WIDTH - 1):
        token_R = start_R + i
        known_RK = (token_R < tokens)[:, None] & known_K
        x_RK = tl.load(x + token_R[:, None] * stride + channel_K, known_RK, other=0.0).to(tl.float32)
        dy_RK = tl.load(dy + token_R[:, None] * CHANNELS + channel_K, known_RK, other=0.0).to(tl.float32)
        taps = taps + (x_RK,)
        dz_RK = before_conv(convolve(taps, columns, bias_K, WIDTH), dy_RK, ACTIVATION, NORM, EPS, SIZE)
        dz_RK = tl.where(known_RK, dz_RK, 0.0)
        waiting = spread(waiting + (zero_RK,), dz_RK, columns, place_R, WIDTH)
        done_R1 = (token_R - (WIDTH - 1))[:, None]
        done_at = dx + done_R1 * CHANNELS + channel_K
        tl.store(done_at, waiting[0], (i >= WIDTH - 1) & (done_R1 < tokens) & known_K)
        own_RK = tl.where(i < STEPS, dz_RK, 0.0)  # what follows is the next strip's
        dweight = gather(dweight, own_RK, taps, WIDTH)
        dbias += own_RK
        waiting = waiting[1:]
        row_R, place_R = follow(token_R + 1, row_R, place_R, tokens, length, sequence)
        taps = restart(taps[1:], past, b, row_R, place_R, sequences, channel_K, known_K, CHANNELS, WIDTH)
    for j in tl.static_range(WIDTH):
        tl.store(sums + j * ALL + channel_K, tl.sum(dweight[j], 0, keep_dims=True), known_K)
    if bias is not None:
        tl.store(sums + WIDTH * ALL + channel_K, tl.sum(dbias, 0, keep_dims=True), known_K)


@triton.jit
def spread(waiting, dz_RK, columns, place_R, WIDTH: tl.constexpr):
    """Add what the tokens' dz give to dx of the tokens before them, in the same sequence."""
    found = ()
    for j in tl.static_range(WIDTH):
        inside_R1 = (place_R >= WIDTH - 1 - j)[:, None]
        found = found + (waiting[j] + tl.where(inside_R1, dz_RK * columns[j], 0.0),)
    return found


@triton.jit
def gather(dweight, dz_RK, taps, WIDTH: tl.constexpr):
    """Add the tokens' share of dweight."""
    found = ()
    for j in tl.static_range(WIDTH):
        found = found + (dweight[j] + dz_RK * taps[j],)
    return found


@triton.jit(do_not_specialize=LENGTHS)
def conv_backward(
    dy, x, strides, weight, bias, past, dx, sums, sequence, cu_seqlens, tokens, length, sequences,
    CHANNELS: tl.constexpr, SIZES: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATIONS: tl.constexpr,
    NORMS: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
    ALL: tl.constexpr,
):  # fmt: skip
    """dx of every branch, and one part of dweight and dbias for each block: sums [blocks, WIDTH + 1, ALL channels]."""
    block = tl.program_id(0).to(tl.int64)
    start_R = (block * ROWS + tl.arange(0, ROWS)) * STEPS
    head = tl.program_id(1)
    sums += block * (WIDTH + 1) * ALL
    for b in tl.static_range(len(SIZES)):
        heads = (CHANNELS[b] + SIZES[b] - 1) // SIZES[b]
        if (head >= 0) & (head < heads):
            backward_strips(
                dy[b], x[b], strides[b], weight[b], bias, past, dx[b], sums, b, sequence, cu_seqlens,
                tokens, length, sequences, start_R, head, CHANNELS[b], SIZES[b], COLUMNS[b],
                tl.constexpr(ACTIVATIONS[b]), tl.constexpr(NORMS[b]), EPS[b], WIDTH, STEPS, ALL,
            )  # fmt: skip
        head -= heads
        sums += CHANNELS[b]


@triton.jit
def ends(row_R, length, cu_seqlens, sequences):
    """The first token of each sequence and the one after its last; rows that are none are empty."""
    known_R = row_R < sequences
    if cu_seqlens is None:
        return row_R * length, tl.where(known_R, row_R + 1, row_R) * length
    else:
        first_R = tl.load(cu_seqlens + row_R, known_R, other=0)
        return first_R, tl.load(cu_seqlens + row_R + 1, known_R, other=0)


@triton.jit
def past_strips(
    dy, x, stride, weight, bias, past, dpast, b: tl.constexpr, cu_seqlens, length, sequences, row_R, head,
    CHANNELS: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr,
    EPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dpast of one head: entry m meets the first m + 1 tokens."""
    channel_K, known_K = channels_of(head, SIZE, COLUMNS, CHANNELS)
    columns = weights_of(weight, channel_K, known_K, WIDTH)
    bias_K = bias_of(bias, b, channel_K, known_K)
    first_R, end_R = ends(row_R, length, cu_seqlens, sequences)
    zero_RK = tl.zeros([row_R.shape[0], COLUMNS], tl.float32)
    found = (zero_RK,) * (WIDTH - 1)
    taps = restart(found, past, b, row_R, row_R * 0, sequences, channel_K, known_K, CHANNELS, WIDTH)
    for i in tl.static_range(WIDTH - 1):
        token_R = first_R + i
        known_RK = (token_R < end_R)[:, None] & known_K
        x_RK = tl.load(x + token_R[:, None] * stride + channel_K, known_RK, other=0.0).to(tl.float32)
        dy_RK = tl.load(dy + token_R[:, None] * CHANNELS + channel_K, known_RK, other=0.0).to(tl.float32)
        taps = taps + (x_RK,)
        dz_RK = before_conv(convolve(taps, columns, bias_K, WIDTH), dy_RK, ACTIVATION, NORM, EPS, SIZE)
        dz_RK = tl.where(known_RK, dz_RK, 0.0)
        taps = taps[1:]
        more = ()
        for m in tl.static_range(WIDTH - 1):
            if m < i:
                more = more + (found[m],)
            else:
                more = more + (found[m] + dz_RK * columns[m - i],)
        found = more
    for m in tl.static_range(WIDTH - 1):
        at = dpast + (row_R * (WIDTH - 1) + m)[:, None] * CHANNELS + channel_K
        tl.store(at, found[m], (row_R < sequences)[:, None] & known_K)


@triton.jit(do_not_specialize=LENGTHS)
def conv_past_backward(
    dy, x, strides, weight, bias, past, dpast, cu_seqlens, length, sequences,
    CHANNELS: tl.constexpr, SIZES: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATIONS: tl.constexpr,
    NORMS: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dpast of every branch: a program is a block of sequences and one head of one branch."""
    row_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    for b in tl.static_range(len(SIZES)):
        heads = (CHANNELS[b] + SIZES[b] - 1) // SIZES[b]
        if (head >= 0) & (head < heads):
            past_strips(
                dy[b], x[b], strides[b], weight[b], bias, past, dpast[b], b, cu_seqlens, length, sequences, row_R,
                head, CHANNELS[b], SIZES[b], COLUMNS[b], tl.constexpr(ACTIVATIONS[b]), tl.constexpr(NORMS[b]),
                EPS[b], WIDTH,
            )  # fmt: skip
        head -= heads


@triton.jit
def last_strips(
    x, stride, past, last, cu_seqlens, length, sequences, row_R, head,
    CHANNELS: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The last `WIDTH - 1` inputs of one head, those of short sequences partly from their past."""
    channel_K, known_K = channels_of(head, SIZE, COLUMNS, CHANNELS)
    first_R, end_R = ends(row_R, length, cu_seqlens, sequences)
    known_RK = (row_R < sequences)[:, None] & known_K
    for m in tl.static_range(WIDTH - 1):
        token_R = end_R - (WIDTH - 1 - m)
        new_R1 = (token_R >= first_R)[:, None]
        new_RK = tl.load(x + token_R[:, None] * stride + channel_K, new_R1 & known_RK, other=0.0)
        slot_R = row_R * (WIDTH - 1) + m + end_R - first_R
        old_RK = tl.load(past + slot_R[:, None] * CHANNELS + channel_K, ~new_R1 & known_RK, other=0.0)
        at = last + (row_R * (WIDTH - 1) + m)[:, None] * CHANNELS + channel_K
        tl.store(at, tl.where(new_R1, new_RK, old_RK.to(new_RK.dtype)), known_RK)


@triton.jit(do_not_specialize=LENGTHS)
def conv_last(
    x, strides, past, last, cu_seqlens, length, sequences,
    CHANNELS: tl.constexpr, SIZES: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The past of the next call, of every branch: a program is a block of sequences and one head of one branch."""
    row_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    for b in tl.static_range(len(SIZES)):
        heads = (CHANNELS[b] + SIZES[b] - 1) // SIZES[b]
        if (head >= 0) & (head < heads):
            last_strips(
                x[b], strides[b], past[b], last[b], cu_seqlens, length, sequences, row_R, head,
                CHANNELS[b], SIZES[b], COLUMNS[b], WIDTH,
            )  # fmt: skip
        head -= heads


class Branches(NamedTuple):
    """What the kernels know of the branches: one entry for each, ready to be an argument."""

    CHANNELS: tuple[int, ...]
    SIZES: tuple[int, ...]  # a head where it is normed, else what fills the columns
    COLUMNS: tuple[int, ...]
    ACTIVATIONS: tuple[str, ...]
    NORMS: tuple[str, ...]
    EPS: tuple[float, ...]
    WIDTH: int

    @property
    def heads(self) -> int:
        """Programs beside each other."""
        return sum(triton.cdiv(channels, size) for channels, size in zip(self.CHANNELS, self.SIZES))

    def rows(self, entries: int) -> int:
        """Rows of a program."""
        return max(entries // max(self.COLUMNS), 1)

    def warps(self, entries: int) -> int:
        """Warps of a program: more where one row has more than that many entries."""
        return 4 * max(max(self.COLUMNS) // entries, 1)


def branches(
    channels: Sequence[int], heads: Sequence[int], steps: str, eps: Sequence[float], width: int
) -> Branches:
    """The branches whose channels are heads of `heads` entries; `steps` is "silu l2norm, silu none"."""
    activations, norms = zip(*(step.split() for step in steps.split(", ")))
    sizes = tuple(
        min(128, triton.next_power_of_2(count)) if norm == "none" else head
        for count, head, norm in zip(channels, heads, norms)
    )
    columns = tuple(triton.next_power_of_2(size) for size in sizes)
    return Branches(tuple(channels), sizes, columns, activations, norms, tuple(eps), width)


class Tokens(NamedTuple):
    """The rows of x as the kernels see them, and where sequences begin."""

    x: tuple[Tensor, ...]
    strides: tuple[int, ...]
    sequence: Tensor | None
    cu_seqlens: Tensor | None
    tokens: int
    length: int
    sequences: int


def tokens_of(x: Sequence[Tensor], sequence: Tensor | None, cu_seqlens: Tensor | None) -> Tokens:
    """`x [B, T, C]` as rows: views where its rows lie evenly, as after a split of a wider tensor."""
    batch, length = x[0].shape[:2]
    rows = tuple(
        piece.flatten(0, 1) if piece.stride(2) == 1 else piece.contiguous().flatten(0, 1) for piece in x
    )
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return Tokens(
        rows, tuple(row.stride(0) for row in rows), sequence, cu_seqlens, batch * length, length, sequences
    )


def launch_conv(
    x: Sequence[Tensor], weight: Sequence[Tensor], bias: Sequence[Tensor], past: Sequence[Tensor],
    sequence: Tensor | None, cu_seqlens: Tensor | None, of: Branches,
) -> list[Tensor]:  # fmt: skip
    """y of each branch, as its x; `bias` and `past` may be empty."""
    y = [torch.empty_like(piece, memory_format=torch.contiguous_format) for piece in x]
    at = tokens_of(x, sequence, cu_seqlens)
    rows = of.rows(FORWARD_ENTRIES)
    if at.tokens:
        conv_forward[triton.cdiv(at.tokens, rows * FORWARD_STEPS), of.heads](
            at.x, at.strides, _all(weight), _all(bias), _all(past), tuple(y), *at[2:], **of._asdict(),
            ROWS=rows, STEPS=FORWARD_STEPS, num_warps=of.warps(FORWARD_ENTRIES),
        )  # fmt: skip
    return y


def launch_conv_backward(
    dy: Sequence[Tensor], x: Sequence[Tensor], weight: Sequence[Tensor], bias: Sequence[Tensor],
    past: Sequence[Tensor], sequence: Tensor | None, cu_seqlens: Tensor | None, of: Branches,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:  # fmt: skip
    """The gradients of x, weight, bias and past, each entry of one branch; the last two empty where there are none."""
    dx = [torch.empty_like(piece, memory_format=torch.contiguous_format) for piece in x]
    dpast = [torch.empty_like(piece) for piece in past]
    at = tokens_of(x, sequence, cu_seqlens)
    rows, total = of.rows(BACKWARD_ENTRIES), sum(of.CHANNELS)
    blocks = triton.cdiv(at.tokens, rows * BACKWARD_STEPS)
    sums = torch.empty(blocks, of.WIDTH + 1, total, dtype=torch.float32, device=x[0].device)
    flat, given = _all(dy), (at.x, at.strides, _all(weight), _all(bias), _all(past))
    if at.tokens:
        conv_backward[blocks, of.heads](
            flat, *given, tuple(dx), sums, *at[2:], **of._asdict(),
            ROWS=rows, STEPS=BACKWARD_STEPS, ALL=total, num_warps=of.warps(BACKWARD_ENTRIES),
        )  # fmt: skip
    if past and at.sequences:
        conv_past_backward[triton.cdiv(at.sequences, rows), of.heads](
            flat, *given, tuple(dpast), at.cu_seqlens, at.length, at.sequences, **of._asdict(),
            ROWS=rows, num_warps=of.warps(BACKWARD_ENTRIES),
        )  # fmt: skip
    whole = sums[:, : of.WIDTH + bool(bias)].sum(0)  # always in one order
    parts = whole.split(list(of.CHANNELS), 1)
    dweight = [part[: of.WIDTH].t().to(w.dtype, copy=True).contiguous() for part, w in zip(parts, weight)]
    dbias = [part[of.WIDTH].to(b.dtype, copy=True) for part, b in zip(parts, bias)]
    return dx, dweight, dbias, dpast


def launch_conv_last(
    x: Sequence[Tensor], past: Sequence[Tensor], cu_seqlens: Tensor | None, of: Branches
) -> list[Tensor]:
    """The past of the next call `[N, WIDTH - 1, C]` of each branch, in the dtype of x."""
    last = [torch.empty_like(before, dtype=piece.dtype) for piece, before in zip(x, past)]
    at = tokens_of(x, None, cu_seqlens)
    rows = of.rows(FORWARD_ENTRIES)
    if at.sequences:
        conv_last[triton.cdiv(at.sequences, rows), of.heads](
            at.x, at.strides, _all(past), tuple(last), at.cu_seqlens, at.length, at.sequences,
            of.CHANNELS, of.SIZES, of.COLUMNS, of.WIDTH, rows, num_warps=of.warps(FORWARD_ENTRIES),
        )  # fmt: skip
    return last


def _all(pieces: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    return tuple(piece.contiguous() for piece in pieces) or None
