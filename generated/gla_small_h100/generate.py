"""Continue token sequences with a model, one token at a time."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .state import State


class LanguageModel(Protocol):
    """What `generate` asks of a model."""

    def init_state(self, batch_size: int, max_length: int) -> State: ...

    def __call__(
        self, tokens: Tensor, *, state: State | None = None, attention_mask: Tensor | None = None
    ) -> Tensor: ...


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos: int | None = None,
    attention_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`tokens [B, T]` followed by up to `max_new_tokens` more, `[B, T + new]`.

    `temperature` 0 takes the likeliest token; otherwise one is drawn from the `top_k` likeliest, and of those
    from the fewest whose probabilities reach `top_p`. A row that has drawn `eos` is filled up with `eos`; the
    result ends when all rows have. Rows of different lengths are padded on either side, as `attention_mask`
    says. ValueError for arguments out of range or a row without a token.
    """
    if max_new_tokens < 0 or temperature < 0:
        raise ValueError("max_new_tokens and temperature must not be negative")
    if (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError("top_k must be at least 1, top_p in (0, 1]")
    if attention_mask is not None and not bool(attention_mask.bool().any(1).all()):
        raise ValueError("attention_mask leaves a row without a token")
    if max_new_tokens == 0:
        return tokens
    batch, length = tokens.shape
    state = model.init_state(batch_size=batch, max_length=length + max_new_tokens)
    logits = model(tokens, state=state, attention_mask=attention_mask)
    last = logits[:, -1]
    if attention_mask is not None:
        column = torch.arange(length, device=tokens.device)
        index = torch.where(attention_mask.bool(), column, -1).amax(1)
        last = logits[torch.arange(batch, device=tokens.device), index]
    finished = torch.zeros(batch, dtype=torch.bool, device=tokens.device)
    columns = [tokens]
    for step in range(max_new_tokens):
        drawn = choose(last, temperature, top_k, top_p, generator)
        if eos is not None:
            drawn = drawn.masked_fill(finished, eos)
            finished |= drawn == eos
        columns.append(drawn.unsqueeze(1))
        if step + 1 == max_new_tokens or (eos is not None and bool(finished.all())):
            break
        last = model(drawn.unsqueeze(1), state=state)[:, -1]
    return torch.cat(columns, 1)


def choose(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token a row, `[B]`, from `logits [B, vocab]`."""
    if temperature == 0:
        return logits.argmax(-1)
    ordered, tokens = torch.sort(logits.float() / temperature, stable=True, dim=-1, descending=True)
    if top_k is not None:
        ordered, tokens = ordered[:, :top_k], tokens[:, :top_k]
    probabilities = ordered.softmax(-1)
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
        probabilities[:, 0] = probabilities[:, 0].clamp(min=torch.finfo(probabilities.dtype).tiny)
    return tokens.gather(1, torch.multinomial(probabilities, 1, generator=generator)).squeeze(1)
