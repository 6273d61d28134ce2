"""What stays float32 under `.to(bfloat16)` and autocast, and how far bfloat16 may move a model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.laws.measure import exact_model, sequences_of, subject
from tests.laws.subjects import EXCEPTIONS, SUBJECTS
from tests.support.packages import package
from tests.support.slow import mostly_slow

CAUSAL = [name for name in SUBJECTS if name not in EXCEPTIONS]
# Parameters that feed a decay and are no matrix, by the ends of their names: known from the mixers' papers.
FEED_DECAYS = {
    "gated_deltanet_small": {"decay_A_log", "decay_dt_bias"},
    "kda_small": {"decay_A_log", "decay_dt_bias"},
    "mamba2_small": {"A_log", "dt_bias"},
    "windowed_hybrid": {"decay_A_log", "decay_dt_bias"},
    "two_mixers": {"A_log", "dt_bias"},
    "constant_decay": {"rate"},
    "attention_small": set(),
    "rwkv7_small": set(),
}


@cache
def halved(name: str) -> nn.Module:
    """The model in bfloat16."""
    return copy.deepcopy(subject(name)[1]).to(torch.bfloat16)


@pytest.mark.parametrize("name", FEED_DECAYS)
@pytest.mark.parametrize("how", ["to", "bfloat16", "half"])
def test_what_feeds_decays_stays_float32(name: str, how: str) -> None:
    _, model = subject(name)
    model = copy.deepcopy(model)
    dtype = torch.float16 if how == "half" else torch.bfloat16
    low = model.to(dtype) if how == "to" else getattr(model, how)()
    kept = {key for key, value in low.named_parameters() if value.dtype == torch.float32}
    assert {key.split(".")[-1] for key in kept} == FEED_DECAYS[name]
    before = dict(subject(name)[1].named_parameters())
    for key, value in low.named_parameters():
        assert torch.equal(value, before[key]) if key in kept else value.dtype == dtype
    assert low is model


def test_tied_weights_stay_tied() -> None:
    model = halved("attention_small")
    assert model.head_weight() is model.embedding.weight


@pytest.mark.parametrize("name", CAUSAL)
def test_states_of_a_bfloat16_model(name: str) -> None:
    """Recurrent states and normalisers are float32, convolutions and caches are the model's."""
    model = halved(name)
    (tokens,) = sequences_of(20)
    with torch.no_grad():
        state = model.init_state(1, 32)
        model(tokens[None, :12], state=state)
        logits = model(tokens[None, 12:], state=state)
    assert logits.dtype == torch.bfloat16
    for key, value in state.tensors().items():
        last = key.split(".")[-1] in ("o", "normaliser", "maximum") and name != "convolved"
        recurrent = last or ".cell." in key  # a part evaluated token by token is float32 inside
        expected = torch.int64 if key == "length" else torch.float32 if recurrent else torch.bfloat16
        assert value.dtype == expected, key
        assert value.isfinite().all() and (key == "length" or bool(value.any())), key


def coarse_copies(name: str) -> list[nn.Module]:
    """Float32 models whose weights are rounded to bfloat16, moved by half a last place at random."""
    models = []
    for seed in range(3):
        model = copy.deepcopy(subject(name)[1])
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator) - 0.5
            parameter.data.mul_(1 + noise * torch.finfo(torch.bfloat16).eps)
        models.append(model)
    return models


@pytest.mark.parametrize("name", mostly_slow(SUBJECTS, 3))
@pytest.mark.parametrize("how", ["to", "autocast"])
def test_bfloat16_is_near_float32(name: str, how: str) -> None:
    """The error is that of a few roundings of everything, measured by moving float32 weights by one rounding.

    Beside its weights the bfloat16 model rounds each activation once or twice a sublayer: about four roundings of
    everything for the one that the moved weights have, independent, so twice the distance; and twice that again for
    the largest of many numbers.
    """
    _, model = subject(name)
    rows = torch.stack(sequences_of(70, 70))
    with torch.no_grad():
        exact = model(rows)
        moved = max(float((other(rows) - exact).square().mean().sqrt()) for other in coarse_copies(name))
        if how == "to":
            found = halved(name)(rows)
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = model(rows)
    assert found.dtype == torch.bfloat16 and found.isfinite().all()
    error = float((found.float() - exact).square().mean().sqrt())
    assert error <= 4 * moved
    assert error > moved / 100, "nothing was rounded"


def turn(exact: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The distance of two gradients of all parameters, relative to the first."""
    one, other = (torch.cat([value.flatten() for value in values]) for values in (exact, found))
    return float((other - one).norm() / one.norm())


@pytest.mark.parametrize("name", mostly_slow(SUBJECTS, 3))
def test_training_under_autocast(name: str) -> None:
    """A step of training: the loss is float32, gradients have the parameters' dtype and are near those of float32."""
    _, model = subject(name)
    rows = torch.stack(sequences_of(33, 33))
    parameters = list(model.parameters())
    labels = None if model.causal else rows
    exact = model.loss(rows, labels)
    plain = torch.autograd.grad(exact.total, parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.loss(rows, labels)
    coarse = torch.autograd.grad(found.total, parameters)
    assert found.total.dtype == torch.float32
    assert all(
        value.dtype == p.dtype and value.isfinite().all() for value, p in zip(coarse, parameters, strict=True)
    )
    moved = max(
        turn(plain, torch.autograd.grad(other.loss(rows, labels).total, list(other.parameters())))
        for other in coarse_copies(name)
    )
    assert turn(plain, coarse) <= 4 * moved  # as for the logits


@pytest.mark.parametrize("name", CAUSAL)
def test_decoding_under_autocast(name: str) -> None:
    """Mixed dtypes reach every operation: prefill, one token, a packed call."""
    _, model = subject(name)
    (tokens,) = sequences_of(20)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        state = model.init_state(1, 32)
        parts = [model(tokens[None, :12], state=state)]
        parts += [model(tokens[None, t : t + 1], state=state) for t in range(12, 16)]
        parts += [model(tokens[None, 16:], state=state, cu_seqlens=torch.tensor([0, 4]))]
        whole = model(tokens[None])
    found = torch.cat(parts, 1).float()
    with torch.no_grad():
        exact = model(tokens[None])
    floor = float((whole.float() - exact).square().mean().sqrt())
    # Both round at the same places, to other neighbours: their difference is at most that of two such draws.
    assert float((found - exact).square().mean().sqrt()) <= 2 * floor


def test_decays_do_not_collapse() -> None:
    """Rates that differ by less than bfloat16 can tell stay apart (4,096 of them came to five values)."""
    found, _ = subject("mamba2_small")
    model = found.Model()
    with torch.no_grad():
        model.layers[0].mixer.A_log.copy_(1 + torch.arange(model.layers[0].mixer.A_log.numel()) * 1e-4)
    before = model.layers[0].mixer.A_log.detach().clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.layers[0].mixer.A_log, before) and len(before.unique()) == len(before)


def test_float64_all_the_way() -> None:
    """A model in float64 computes in float64: what is below float32's last place still counts."""
    for name in ("attention_small", "plain_linear", "convolved"):
        model = copy.deepcopy(exact_model(name))
        (tokens,) = sequences_of(9)
        with torch.no_grad():
            before = model(tokens[None])
            model.get_parameter(f"layers.0.mixer.{'u' if name == 'convolved' else 'v'}.weight").mul_(
                1 + 1e-12
            )
            after = model(tokens[None])
        assert before.dtype == torch.float64
        assert 0 < float((after - before).abs().max()) < 1e-9


def test_what_is_made_of_a_decay_goes_back() -> None:
    """Float32 values meet matrices, convolutions, norms and values of the activations: bfloat16 goes on from there."""
    body = {
        "decay": "logsigmoid(linear(x, n))",
        "u": "linear(x, n)",
        "forgotten": "1 - exp(decay)",
        "rate": "exp(param(log_rate, [n]))",
        "h": "scan(forgotten * u, decay=-rate)",
        "derived": "scan(forgotten, decay=decay)",
        "normed": "rmsnorm(forgotten) * u",
        "convolved": "conv1d(exp(decay), 3)",
        "mixed": "linear(derived, n)",
        "first": "where(position() == 0, forgotten, u)",
        "signs": "where(u >= 0, u, -u)",
        "square": "rate * rate * u",
        "y": "linear(h + normed + convolved + mixed + first + signs + square, d_model)",
    }
    spec = {
        "archc": 1,
        "name": "goes_back",
        "model": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "context": 64},
        "mixers": {"own": {"params": {"n": 24}, "body": body}},
        "blocks": {"main": {"mixer": {"use": "own"}, "mlp": {"use": "swiglu", "d_ff": 32}}},
    }
    model = package(spec).Model(dtype=torch.bfloat16)
    assert model.layers[0].mixer.log_rate.dtype == torch.float32
    (tokens,) = sequences_of(20)
    _, seen = model(tokens[None], capture=["layers.0.mixer.*"])
    dtypes = {name.removeprefix("layers.0.mixer."): value.dtype for name, value in seen.items()}
    for name in ("u", "h", "normed", "convolved", "mixed", "first", "signs", "square", "y"):
        assert dtypes[name] == torch.bfloat16, name
    for name in ("decay", "forgotten", "derived"):
        assert dtypes[name] == torch.float32, name
    model.loss(tokens[None]).total.backward()
