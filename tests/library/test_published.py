"""Shipped models, made small, against transformers' models that hold the same random weights: logits."""

from __future__ import annotations

import pytest
import torch

from tests.library.published import CASES, our_weights, published
from tests.support.packages import package

LENGTH = 37  # longer than the convolutions, no multiple of a chunk


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits(name: str) -> None:
    case = CASES[name]
    theirs = published(case)
    tokens = torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    ours = package(case.spec).Model().eval()
    held = ours.state_dict()
    given = our_weights(case, dict(theirs.state_dict()), tied="head.weight" not in held)
    assert set(given) == set(held), set(given) ^ set(held)
    weights = {key: given[key].reshape(value.shape) for key, value in held.items()}
    ours.load_state_dict(weights)
    exact = package(case.spec).Model().double().eval()
    exact.load_state_dict({key: value.double() for key, value in weights.items()})
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False, logits_to_keep=0).logits
        single, wide = ours(tokens), exact(tokens)
    # Their model runs in float32: it may err by ten times what ours errs there, since it sums in another order.
    tolerance = 10 * float((single - wide).abs().max())
    assert tolerance < 1e-3 * float(wide.abs().max()), "float32 is too coarse here to tell anything"
    assert float((expected - wide).abs().max()) <= tolerance
