"""Generation: greedy is the argmax loop, rows do not see each other, draws can be repeated."""

from __future__ import annotations

import pytest
import torch

from tests.laws.measure import sequences_of, subject

SOME = ("windowed_hybrid", "two_mixers", "rwkv7_small", "kda_small")


def by_hand(model: torch.nn.Module, tokens: torch.Tensor, new: int) -> torch.Tensor:
    """Without a state: the whole sequence again for every token."""
    for _ in range(new):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


@pytest.mark.parametrize("name", SOME)
def test_greedy_is_the_argmax_loop(name: str) -> None:
    _, model = subject(name)
    rows = torch.stack(sequences_of(9, 9))
    with torch.no_grad():
        assert torch.equal(model.generate(rows, max_new_tokens=12), by_hand(model, rows, 12))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("left", [True, False])
def test_padded_rows_are_the_rows_alone(name: str, left: bool) -> None:
    _, model = subject(name)
    sequences = sequences_of(9, 4, 1)
    rows, mask = torch.zeros(2, 3, 9, dtype=torch.long)
    for i, tokens in enumerate(sequences):
        place = slice(9 - len(tokens), 9) if left else slice(0, len(tokens))
        rows[i, place], mask[i, place] = tokens, 1
    together = model.generate(rows, 10, attention_mask=mask)[:, 9:]
    for i, tokens in enumerate(sequences):
        assert torch.equal(model.generate(tokens[None], 10)[0, len(tokens) :], together[i])


def test_draws_repeat() -> None:
    _, model = subject("windowed_hybrid")
    rows = torch.stack(sequences_of(9, 9))

    def draw(seed: int, **options: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(rows, 24, temperature=1.5, generator=generator, **options)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    greedy = model.generate(rows, 24)
    assert torch.equal(draw(1, top_k=1), greedy) and torch.equal(draw(2, top_p=1e-6), greedy)


def test_the_end_stops_a_row() -> None:
    _, model = subject("kda_small")
    rows = torch.stack(sequences_of(9, 9))
    free = model.generate(rows, 20)[:, 9:]
    eos = int(free[0, 3])
    found = model.generate(rows, 20, eos=eos)[:, 9:]
    for row, expected in zip(found, free, strict=True):
        ends = (expected == eos).nonzero().flatten().tolist()
        kept = ends[0] + 1 if ends else 20
        assert torch.equal(row[:kept], expected[: len(row)][:kept])
        assert (row[kept:] == eos).all()
    assert found.shape[1] <= 20
