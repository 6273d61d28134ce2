"""The ways in which one model can be asked for the same logits; a law says that they all agree.

Each way takes the package, the model and sequences of different lengths (some empty), and gives the logits
`[T, vocabulary]` of each. Where grad is on, states are carried by `return_state=True`, so that gradients flow
through every call; otherwise they are written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Way = Callable[[ModuleType, nn.Module, Sequence[Tensor]], list[Tensor]]


def ask(model: nn.Module, tokens: Tensor, state: Any, **layout: Tensor) -> tuple[Tensor, Any]:
    """Logits, and the state after the call."""
    if torch.is_grad_enabled():
        logits, state = model(tokens, state=state, return_state=True, **layout)
        return logits, state
    return model(tokens, state=state, **layout), state


def alone(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Each sequence in a call of its own."""
    return [model(tokens[None])[0] for tokens in sequences]


def step(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """The same with every recurrence as a loop over tokens: the definition."""
    with package.form("step"):
        return alone(package, model, sequences)


def batch(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """One dense batch; what follows a row's tokens cannot change them."""
    longest = max(len(tokens) for tokens in sequences)
    rows = torch.stack(
        [nn.functional.pad(tokens, (0, longest - len(tokens)), value=3) for tokens in sequences]
    )
    logits = model(rows)
    return [logits[i, : len(tokens)] for i, tokens in enumerate(sequences)]


def decode(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """A prefill of a quarter, then one token at a time."""
    return [in_pieces(model, tokens, [len(tokens) // 4] + [1] * len(tokens)) for tokens in sequences]


def decode_from_nothing(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Every token on its own, from an empty state."""
    return [in_pieces(model, tokens, [1] * len(tokens)) for tokens in sequences]


def decode_chunk(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """One token at a time, each as a chunk of its own."""
    with package.form("chunk"):
        return [in_pieces(model, tokens[:9], [1] * 9) for tokens in sequences]


def four_and_three(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """A prefill of four tokens, one of three, and so on."""
    return [in_pieces(model, tokens, [4, 3] * len(tokens)) for tokens in sequences]


def fifteen_and_one(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Borders beside those of chunks and blocks: 15, 1, 17, 31, 63, 2, then the rest."""
    return [in_pieces(model, tokens, [15, 1, 17, 31, 63, 2, len(tokens)]) for tokens in sequences]


def in_pieces(model: nn.Module, tokens: Tensor, pieces: Sequence[int]) -> Tensor:
    """One sequence in several calls with the given numbers of tokens."""
    state = model.init_state(1, max(len(tokens), 1))  # type: ignore[operator]
    parts, start = [], 0
    for piece in pieces:
        if 0 < piece and start < len(tokens):
            logits, state = ask(model, tokens[None, start : start + piece], state)
            parts.append(logits[0])
            start += piece
    assert start >= len(tokens) and int(state.length) == len(tokens)
    return torch.cat(parts) if parts else model(tokens[None])[0]


def packed(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """All in one row, five tokens of nobody behind them."""
    tokens, cu_seqlens = pack(sequences)
    tail = torch.arange(5, dtype=tokens.dtype)
    return split(model(torch.cat([tokens, tail])[None], cu_seqlens=cu_seqlens), sequences)


def packed_step(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """The same, the recurrences as loops over tokens."""
    with package.form("step"):
        return packed(package, model, sequences)


def packed_pieces(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Three packed calls that continue each other; in the second every other sequence gets nothing."""
    state = model.init_state(len(sequences), max(len(tokens) for tokens in sequences))  # type: ignore[operator]
    cuts = [
        (0, len(tokens) // 3, len(tokens) // 3 if i % 2 else len(tokens) // 2, len(tokens))
        for i, tokens in enumerate(sequences)
    ]
    parts: list[list[Tensor]] = [[] for _ in sequences]
    for call in range(3):
        pieces = [tokens[cut[call] : cut[call + 1]] for tokens, cut in zip(sequences, cuts, strict=True)]
        tokens, cu_seqlens = pack(pieces)
        tail = torch.zeros(2, dtype=tokens.dtype)
        logits, state = ask(model, torch.cat([tokens, tail])[None], state, cu_seqlens=cu_seqlens)
        for part, piece in zip(parts, split(logits, pieces), strict=True):
            part.append(piece)
    assert state.length.tolist() == [len(tokens) for tokens in sequences]
    return [torch.cat(part) for part in parts]


def packed_then_decode(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """All but the last two tokens packed, then one token a row: a batch whose rows have different lengths."""
    kept = [tokens[:-2] for tokens in sequences]
    state = model.init_state(len(sequences), max(len(tokens) for tokens in sequences) + 2)  # type: ignore[operator]
    tokens, cu_seqlens = pack(kept)
    logits, state = ask(model, tokens[None], state, cu_seqlens=cu_seqlens)
    return rest(model, sequences, split(logits, kept), state)


def left_padded(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Rows filled up at their starts."""
    return padded(model, sequences, left=True, state=None)[0]


def right_padded(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Rows filled up at their ends."""
    return padded(model, sequences, left=False, state=None)[0]


def padded_pieces(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Two padded calls, the first on the left, the second on the right."""
    state = model.init_state(len(sequences), max(len(tokens) for tokens in sequences))  # type: ignore[operator]
    first, state = padded(model, [tokens[: len(tokens) // 2] for tokens in sequences], True, state)
    second, state = padded(model, [tokens[len(tokens) // 2 :] for tokens in sequences], False, state)
    return [torch.cat(pair) for pair in zip(first, second, strict=True)]


def padded_then_decode(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """A left-padded prefill, then one token a row: what a server does."""
    state = model.init_state(len(sequences), max(len(tokens) for tokens in sequences) + 2)  # type: ignore[operator]
    first, state = padded(model, [tokens[:-2] for tokens in sequences], True, state)
    return rest(model, sequences, first, state)


def selected(package: ModuleType, model: nn.Module, sequences: Sequence[Tensor]) -> list[Tensor]:
    """The rows of a state turned round and one of them doubled between two packed calls."""
    state = model.init_state(len(sequences), max(len(tokens) for tokens in sequences))  # type: ignore[operator]
    first, state = padded(model, [tokens[: len(tokens) // 2] for tokens in sequences], False, state)
    order = [*reversed(range(len(sequences))), 0]
    state = state.select(order)
    tokens, cu_seqlens = pack(halves := [sequences[i][len(sequences[i]) // 2 :] for i in order])
    logits, state = ask(model, tokens[None], state, cu_seqlens=cu_seqlens)
    second = split(logits, halves)
    return [torch.cat([first[i], second[len(sequences) - 1 - i]]) for i in range(len(sequences))]


def pack(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens in one row, and the borders."""
    lengths = torch.tensor([0] + [len(tokens) for tokens in sequences])
    return torch.cat(list(sequences)), lengths.cumsum(0)


def split(logits: Tensor, sequences: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `pack`, for logits `[1, T, vocabulary]`."""
    total = sum(len(tokens) for tokens in sequences)
    return list(logits[0, :total].split([len(tokens) for tokens in sequences]))


def padded(model: nn.Module, sequences: Sequence[Tensor], left: bool, state: Any) -> tuple[list[Tensor], Any]:
    """One padded call."""
    longest = max(len(tokens) for tokens in sequences) + 1
    rows = torch.full((len(sequences), longest), 5)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    places = [
        slice(longest - len(tokens), longest) if left else slice(0, len(tokens)) for tokens in sequences
    ]
    for i, (tokens, place) in enumerate(zip(sequences, places, strict=True)):
        rows[i, place] = tokens
        mask[i, place] = 1
    if state is None:
        logits = model(rows, attention_mask=mask)
    else:
        logits, state = ask(model, rows, state, attention_mask=mask)
    return [logits[i, place] for i, place in enumerate(places)], state


def rest(model: nn.Module, sequences: Sequence[Tensor], first: list[Tensor], state: Any) -> list[Tensor]:
    """The last two tokens of each row, one a call; shorter rows get tokens of nobody, not looked at."""
    parts = [[part] for part in first]
    for back in (2, 1):
        column = torch.stack([tokens[-back] if len(tokens) >= 2 else torch.tensor(0) for tokens in sequences])
        logits, state = ask(model, column[:, None], state)
        for part, row in zip(parts, logits, strict=True):
            part.append(row)
    return [
        torch.cat(part) if len(tokens) >= 2 else model(tokens[None])[0]
        for part, tokens in zip(parts, sequences, strict=True)
    ]


# The definition comes first: the others are held against it.
STATELESS: dict[str, Way] = {
    way.__name__: way for way in (alone, batch, packed, packed_step, left_padded, right_padded)
}
STATEFUL: dict[str, Way] = {
    way.__name__: way
    for way in (
        decode,
        decode_from_nothing,
        decode_chunk,
        four_and_three,
        fifteen_and_one,
        packed_pieces,
        packed_then_decode,
        padded_pieces,
        padded_then_decode,
        selected,
    )
}
WAYS: dict[str, Way] = {**STATELESS, **STATEFUL}
