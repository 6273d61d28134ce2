"""Generation with a small model made of the run-time sources."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCAB, WIDTH, HEADS = 13, 12, 3


class Small(nn.Module):
    """A convolution, attention with rotary positions and a windowed one; the shape of a generated model."""

    def __init__(self, package: Any) -> None:
        super().__init__()
        self.package = package
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.conv = package.conv1d.CausalConv1d(WIDTH, 4)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def init_state(self, batch_size: int, max_length: int) -> Any:
        memory = {"conv": torch.zeros(batch_size, 3, WIDTH)}
        for name, slots in (("full", max_length), ("near", 4)):
            for key in ("k", "v"):
                memory[f"{name}.{key}"] = torch.zeros(batch_size, slots, HEADS, WIDTH // HEADS)
        return self.package.state.State.empty(memory, batch_size, max_length, limited_by="full.k")

    def forward(
        self,
        tokens: Tensor,
        state: Any = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        package, padding = self.package, None
        longest_new = None
        if attention_mask is not None:
            padding = package.place.pack_padding(attention_mask)
            longest_new = tokens.shape[1]
            tokens, cu_seqlens = padding.pack(tokens), padding.cu_seqlens
        if cu_seqlens is None:
            layout = package.place.dense_layout(tokens, state)
        else:
            layout = package.place.packed_layout(cu_seqlens, tokens.shape[1], state, longest_new)
        place = package.state.open_place(layout, state)
        x = self.embed(tokens)
        x = x + self.conv(x, place, "conv")
        for name, window in (("full", None), ("near", 4)):
            q, k, v = (part.unflatten(2, (HEADS, -1)) for part in self.qkv(x).chunk(3, 2))
            q, k = (package.rope.rope(part, place, 100.0) for part in (q, k))
            out = package.attention.attention(q, k, v, scale=0.5, place=place.at(name), window=window)
            x = x + package.norms.rmsnorm(out, eps=1e-6).flatten(2)
        if state is not None:
            package.state.close_place(place, state)
        logits = x @ self.embed.weight.t()
        return logits if padding is None else padding.unpack(logits)


@pytest.fixture
def model(package: Any) -> Small:
    return Small(package)


def greedy(model: Small, tokens: Tensor, steps: int) -> Tensor:
    """No state, no batch."""
    for _ in range(steps):
        tokens = torch.cat([tokens, model(tokens[None])[0, -1].argmax().view(1)])
    return tokens


@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_greedy(package: Any, model: Small, side: str) -> None:
    lengths = [5, 2, 7] if side != "none" else [7, 7, 7]
    rows = [torch.randint(VOCAB, (length,)) for length in lengths]
    tokens, mask = torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 7, dtype=torch.int64)
    for n, row in enumerate(rows):
        columns = slice(7 - len(row), 7) if side == "left" else slice(0, len(row))
        tokens[n, columns], mask[n, columns] = row, 1
    got = package.generate.generate(model, tokens, 9, attention_mask=mask if side != "none" else None)
    assert got.shape == (3, 16) and torch.equal(got[:, :7], tokens)
    for n, row in enumerate(rows):
        assert got[n, 7:].tolist() == greedy(model, row, 9)[len(row) :].tolist()


def test_stops(package: Any, model: Small) -> None:
    tokens = torch.randint(VOCAB, (2, 3))
    free = package.generate.generate(model, tokens, 8)
    eos = int(free[0, 5])
    got = package.generate.generate(model, tokens, 8, eos=eos)
    for row, whole in zip(got[:, 3:].tolist(), free[:, 3:].tolist(), strict=True):
        end = whole.index(eos) + 1 if eos in whole else 8
        assert row[:end] == whole[: min(end, len(row))] and set(row[end:]) <= {eos}
    alone = package.generate.generate(model, tokens[:1], 8, eos=eos)
    assert alone.shape[1] == 3 + free[0, 3:].tolist().index(eos) + 1
    assert torch.equal(package.generate.generate(model, tokens, 0), tokens)


def test_sampling(package: Any, model: Small) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(4000, 4)
    generator = torch.Generator().manual_seed(1)

    def shares(**options: Any) -> Tensor:
        drawn = package.generate.choose(logits, 1.0, generator=generator, **options)
        return torch.bincount(drawn, minlength=4) / 4000

    p = logits[0].softmax(0)
    # Five standard deviations of a share of 4000 draws.
    assert (shares() - p).abs().max() < 5 * 0.5 / 4000**0.5
    top = torch.cat([p[:2] / p[:2].sum(), torch.zeros(2)])
    assert (shares(top_k=2) - top).abs().max() < 5 * 0.5 / 4000**0.5
    assert (shares(top_p=0.7) - top).abs().max() < 5 * 0.5 / 4000**0.5  # 0.64 < 0.7: two are needed
    assert shares(top_p=1e-9)[0] == 1
    one, two = (
        package.generate.generate(
            model,
            torch.zeros(2, 3, dtype=torch.int64),
            5,
            temperature=1.0,
            generator=torch.Generator().manual_seed(7),
        )
        for _ in range(2)
    )
    assert torch.equal(one, two)


def test_arguments(package: Any, model: Small) -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    for options in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="must"):
            package.generate.generate(model, tokens, 1, **options)
    with pytest.raises(ValueError, match="without a token"):
        mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
        package.generate.generate(model, tokens, 1, attention_mask=mask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "packed", "padded"])
def test_twelve_lengths_make_two_graphs(package: Any, model: Small, kind: str) -> None:
    graphs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return aot_eager(graph, inputs)

    from torch._dynamo.backends.debugging import aot_eager

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=count)
    for length in range(5, 17):
        tokens = torch.randint(VOCAB, (2 if kind != "packed" else 1, length))
        options: dict[str, Tensor] = {}
        if kind == "packed":
            options = {"cu_seqlens": torch.tensor([0, 2, 2, length - 1])}
        elif kind == "padded":
            options = {"attention_mask": (torch.arange(length) >= torch.tensor([[1], [3]])).long()}
        got, want = compiled(tokens, **options), model(tokens, **options)
        if kind == "packed":
            got, want = got[:, : length - 1], want[:, : length - 1]
        elif kind == "padded":
            kept = options["attention_mask"].bool()
            got, want = got[kept], want[kept]
        torch.testing.assert_close(got, want)
        got.square().sum().backward()
    assert graphs <= 2


def test_compiled_decoding(package: Any, model: Small) -> None:
    graphs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    torch._dynamo.reset()
    tokens = torch.randint(VOCAB, (2, 14))
    want = model(tokens)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=count)
        state = model.init_state(2, 14)
        got = [model(tokens[:, :2], state)]
        for t in range(2, 14):
            got.append(compiled(tokens[:, t : t + 1], state))
    torch.testing.assert_close(torch.cat(got, 1), want)
    assert state.length.tolist() == [14, 14] and state.longest == 14
    assert graphs <= 3
