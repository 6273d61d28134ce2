"""What no other test noticed when it was changed on purpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from archc import pipeline
from tests.language.check import ROUNDING, distance, linear, spec_of, worst_way
from tests.language.test_blocks import NSA
from tests.support.imports import imported
from tests.support.packages import package


def test_regrouped_weights_keep_their_scale() -> None:
    """A choice of blocks by regrouped weights does not see their scale, another reader does."""
    name = package(NSA).__name__
    blocks = imported(f"{name}.blocks")
    cache = imported(f"{name}.cache")
    place = imported(f"{name}.place")
    here = place.Place(place.dense_layout(torch.zeros(1, 8)))
    # Blocks of 4 tokens, one every 2: [0, 4), [2, 6), [4, 8). Blocks of 4 tokens side by side: [0, 4), [4, 8).
    weights = torch.tensor([[[0.5, 0.25, 0.125]]])
    found = blocks.regroup(weights, here, cache.Blocks(4, 2), 4)
    # Shared tokens over the stride of 2: 4 / 2, 2 / 2 and 0; then 0, 2 / 2 and 4 / 2.
    assert found.tolist() == [[[2 * 0.5 + 0.25, 0.25 + 2 * 0.125]]]


LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "0 - u": lambda u: 0 - u,
    "1 / u": lambda u: 1 / u,
    "1 ** u": lambda u: 1**u,
}


@pytest.mark.parametrize("text", LEFT)
def test_what_is_not_neutral_on_the_left(text: str) -> None:
    """`u - 0`, `u / 1` and `u ** 1` are u; with the operands exchanged they are not."""
    spec = spec_of("left", {"u": "1 + sigmoid(linear(x, d_model, name=inner))", "y": text})
    assert (
        distance(spec, lambda mixer, x: LEFT[text](1 + linear(mixer, "inner", x, 32).sigmoid()), 5) < ROUNDING
    )


NUMBERS = {
    "a - (b - c)": 5.0,
    "(a - b) * c": 6.0,
    "a / (b / c)": 4.2,
    "c - a - b": -9.0,
    "-(a - b) ** c": -8.0,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_keep_their_parentheses(text: str) -> None:
    """Parameters of a spec stay names in its package, so what is printed must bind as it was written."""
    params = {name: {"type": "number", "default": value} for name, value in {"a": 7, "b": 5, "c": 3}.items()}
    spec = spec_of("numbers", {"y": f"linear(x, d_model, name=inner) * ({text})"}, params)
    assert distance(spec, lambda mixer, x: linear(mixer, "inner", x, 32) * NUMBERS[text], 5) < ROUNDING


@pytest.mark.parametrize("mask", ["i - j < 5", "i - j <= 4", "j > i - 5", "5 > i - j"])
def test_masks_that_are_or_look_like_windows(mask: str) -> None:
    """However a window of 5 tokens is written, its queries see those 5, and what is kept holds them."""

    def definition(mixer: nn.Module, x: Tensor) -> Tensor:
        q = linear(mixer, "q", x, 2, 8)
        k, v = linear(mixer, "k", x, 2, 8), linear(mixer, "v", x, 2, 8)
        scores = torch.einsum("ihk,jhk->hij", q, k) * 8**-0.5
        seen = torch.ones(len(x), len(x)).tril().triu(-4).bool()
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return linear(mixer, "out", torch.einsum("hij,jhv->ihv", weights, v).flatten(1), 32)

    body = dict.fromkeys(("q", "k", "v"), "linear(x, [2, 8])")
    body |= {"o": f"attention(q, k, v, mask={mask})", "y": "linear(o, d_model, name=out)"}
    spec = spec_of("windows", body)
    assert distance(spec, definition, 19) < ROUNDING
    worst, way, _ = worst_way(spec)
    assert worst < ROUNDING, way


@pytest.mark.parametrize(("window", "tokens"), [(None, 40), (7, 40), (7, 5)])
def test_flops_of_whole_calls(window: int | None, tokens: int) -> None:
    """Of attention: what is paid once a token, once a visible pair, and three times in training."""
    heads, width = 2, 8
    body = dict.fromkeys(("q", "k", "v"), f"linear(x, [{heads}, {width}])")
    mask = "" if window is None else f", mask=i - j < {window}"
    spec = spec_of("priced", {**body, "o": f"attention(q, k, v{mask})", "y": "linear(o, d_model, name=out)"})
    one, many = pipeline.cost(spec, tokens=1), pipeline.cost(spec, tokens=tokens)
    batch = pipeline.cost(spec, tokens=tokens, batch_size=3)
    a_pair = heads * (2 * width + 2 * width + 6)  # the score, the sum, the softmax
    pairs = sum(1 for i in range(tokens) for j in range(i + 1) if window is None or i - j < window)
    last = tokens if window is None else min(tokens, window)
    assert one.prefill_flops == one.decode_flops
    assert many.prefill_flops - tokens * one.prefill_flops == (pairs - tokens) * a_pair
    assert many.decode_flops - one.decode_flops == (last - 1) * a_pair
    assert many.training_flops == 3 * many.prefill_flops
    for name in ("prefill_flops", "decode_flops", "training_flops", "cache_bytes", "window_bytes"):
        assert getattr(batch, name) == 3 * getattr(many, name), name
