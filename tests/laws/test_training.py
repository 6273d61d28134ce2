"""Loss, checkpointing, weights on disk, groups, other sizes, captured intermediates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.laws.measure import ANOTHER_ORDER, exact_model, sequences_of, slope_distance, subject, truth
from tests.laws.subjects import HYBRIDS, SHRUNK, SUBJECTS
from tests.laws.ways import pack
from tests.support.packages import package, randomise, small_spec

EPSILON = torch.finfo(torch.float32).eps
SOME = ("windowed_hybrid", "two_mixers", "mamba2_small", "rwkv7_small")


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each token's successor."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def steepness(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("name", SOME)
def test_loss(name: str) -> None:
    """Equal to the cross entropy of whole logits, in value and gradient, however many tokens at a time."""
    _, model = subject(name)
    rows = torch.stack(sequences_of(21, 21))
    labels = rows.clone()
    labels[0, 5:9] = -100
    exact = plain_loss(exact_model(name)(rows), labels)
    plain = plain_loss(model(rows), labels)
    slope = steepness(exact_model(name), exact)
    floor = max(abs(float(plain - exact)), EPSILON * float(exact))
    steep_floor = slope_distance(steepness(model, plain), slope, model.float32)
    for chunk in (1, 7, 1024):
        found = model.loss(rows, labels, chunk=chunk)
        assert found.main.dtype == torch.float32 and float(found.aux) == 0
        assert abs(float(found.total - exact)) <= ANOTHER_ORDER * floor
        assert (
            slope_distance(steepness(model, found.total), slope, model.float32) <= ANOTHER_ORDER * steep_floor
        )


@pytest.mark.parametrize("name", SOME)
def test_loss_of_packed_and_padded_rows(name: str) -> None:
    """No token is asked to predict the first one of the next sequence, nor padding."""
    _, model = subject(name)
    sequences = sequences_of(13, 0, 1, 9)
    with torch.no_grad():
        logits = [model(tokens[None])[0] for tokens in sequences]
        targets = torch.cat([tokens[1:] for tokens in sequences])
        expected = F.cross_entropy(torch.cat([row[:-1] for row in logits]), targets)
        tokens, cu_seqlens = pack(sequences)
        packed = model.loss(torch.cat([tokens, tokens[:4]])[None], cu_seqlens=cu_seqlens)
        rows = torch.full((4, 15), 2)
        left, right = torch.zeros(2, 4, 15, dtype=torch.long)
        for i, one in enumerate(sequences):
            left[i, 15 - len(one) :] = 1
            right[i, : len(one)] = 1
        from_left = model.loss(rows.masked_scatter(left.bool(), tokens), attention_mask=left)
        from_right = model.loss(rows.masked_scatter(right.bool(), tokens), attention_mask=right)
    limit = 2 * truth(name, 13, 0, 1, 9).tolerance  # the loss moves by at most twice what the logits do
    for found in (packed, from_left, from_right):
        assert abs(float(found.total - expected)) <= limit


def test_loss_where_nothing_counts() -> None:
    _, model = subject("gla_small")
    rows = torch.zeros(1, 4, dtype=torch.long)
    found = model.loss(rows, torch.full_like(rows, -100))
    assert (
        float(found.total) == 0
        and not torch.stack(torch.autograd.grad(found.total, [model.norm.weight])).any()
    )


@pytest.mark.parametrize("name", SOME)
def test_checkpointing(name: str) -> None:
    """Layers that are computed again in the backward give the same gradients, bit for bit."""
    _, model = subject(name)
    rows = torch.stack(sequences_of(70, 70))
    parameters = list(model.parameters())
    plain = torch.autograd.grad(model.loss(rows).total, parameters)
    forwards = [layer.forward for layer in model.layers]
    try:
        for layer, forward in zip(model.layers, forwards, strict=True):
            layer.forward = partial(checkpoint, forward, use_reentrant=False)
        again = torch.autograd.grad(model.loss(rows).total, parameters)
    finally:
        for layer, forward in zip(model.layers, forwards, strict=True):
            layer.forward = forward
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize("name", SOME)
def test_weights_on_disk(name: str, tmp_path: Path) -> None:
    found, model = subject(name)
    path = tmp_path / "weights.safetensors"
    own = dict(model.named_parameters())
    save_file({key: value.detach().contiguous() for key, value in own.items()}, path)
    other = found.Model()
    report = other.load(path)
    assert set(report.loaded) == set(own) and not report.initialised and not report.unused
    assert all(torch.equal(value, own[key]) for key, value in other.named_parameters())
    (tokens,) = sequences_of(20)
    with torch.no_grad():
        assert torch.equal(other(tokens[None]), model(tokens[None]))


def test_loading_what_fits(tmp_path: Path) -> None:
    found, model = subject("windowed_hybrid")
    tensors = {key: value.detach().clone() for key, value in model.named_parameters()}
    del tensors["layers.0.mixer.q.weight"]
    tensors["layers.1.mixer.q.weight"] = torch.zeros(3, 3)
    tensors["stray"] = torch.zeros(1)
    other = found.Model()
    before = {key: value.detach().clone() for key, value in other.named_parameters()}
    with pytest.raises(KeyError, match=r"layers\.0\.mixer\.q\.weight"):
        other.load(tensors)
    assert all(torch.equal(value, before[key]) for key, value in other.named_parameters())
    report = other.load(tensors, missing="init")
    assert set(report.initialised) == {"layers.0.mixer.q.weight", "layers.1.mixer.q.weight"}
    assert report.unused == ("stray",)
    assert torch.equal(other.layers[0].mixer.q.weight, before["layers.0.mixer.q.weight"])
    assert torch.equal(other.layers[2].mixer.q.weight, model.layers[2].mixer.q.weight)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_parameter_is_in_one_group(name: str) -> None:
    _, model = subject(name)
    groups = model.parameter_groups(weight_decay=0.1)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    weights = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        if key.endswith(".y.weight"):
            assert weights[id(parameter)] == 0.1
        if parameter.dim() < 2 or key == "embedding.weight" or key.endswith(model.float32 or ("\0",)):
            assert weights[id(parameter)] == 0.0, key


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHRUNK, *HYBRIDS])
def test_other_sizes_without_a_rebuild(name: str) -> None:
    """A package whose `Config` is changed is the package that is built for those numbers."""
    spec = SHRUNK[name] if name in SHRUNK else HYBRIDS[name]
    changed = {"d_model": 192, "vocab_size": 50}
    mine = package(spec)
    built = package({**spec, "model": {**spec["model"], **changed}})
    torch.manual_seed(0)
    one = randomise(mine.Model(mine.Config(**changed)))
    torch.manual_seed(0)
    other = randomise(built.Model())
    shapes = {key: value.shape for key, value in one.named_parameters()}
    assert shapes == {key: value.shape for key, value in other.named_parameters()}
    tokens = sequences_of(19, vocabulary=50)[0][None]
    with torch.no_grad():
        assert torch.equal(one(tokens), other(tokens))


@pytest.mark.parametrize("name", ["mamba2_small", "gla_small", "rwkv7_small", "windowed_hybrid"])
def test_other_depths_without_a_rebuild(name: str) -> None:
    spec = SUBJECTS[name]
    mine = package(spec)
    built = package({**spec, "model": {**spec["model"], "n_layers": 7}})
    torch.manual_seed(0)
    one = randomise(mine.Model(mine.Config(n_layers=7)))
    torch.manual_seed(0)
    other = randomise(built.Model())
    tokens = sequences_of(19)[0][None]
    with torch.no_grad():
        assert torch.equal(one(tokens), other(tokens))


@pytest.mark.parametrize("padded", [False, True])
def test_captured_intermediates(padded: bool) -> None:
    _, model = subject("windowed_hybrid")
    rows = torch.stack(sequences_of(11, 11))
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    options = {"attention_mask": mask} if padded else {}
    with torch.no_grad():
        logits, seen = model(rows, capture=["layers.*.mixer.beta", "layers.1.mlp.*"], **options)
        assert torch.equal(logits, model(rows, **options))
        assert {f"layers.{i}.mixer.beta" for i in range(3)} <= set(seen)
        assert {"layers.1.mlp.gate", "layers.1.mlp.up", "layers.1.mlp.y"} <= set(seen)
        assert not any(key.startswith(("layers.4.mixer", "layers.0.mlp")) for key in seen)
        assert all(value.shape[:2] == rows.shape for value in seen.values())
        gate, up = seen["layers.1.mlp.gate"], seen["layers.1.mlp.up"]
        y = model.layers[1].mlp.y(F.silu(gate) * up)
        kept = mask.bool() if padded else torch.ones_like(mask).bool()
        torch.testing.assert_close(seen["layers.1.mlp.y"][kept], y[kept])


def test_small_specs_as_they_are_shipped() -> None:
    """The shipped sizes start with a loss near that of a uniform guess."""
    for name in ("attention_small", "gated_deltanet_small"):
        torch.manual_seed(0)
        model = package(small_spec(name)).Model()
        with torch.no_grad():
            loss = float(model.loss(torch.stack(sequences_of(64, vocabulary=256))).total)
        assert abs(loss - torch.tensor(256.0).log()) < 0.5
