"""The example slot_hybrid against the paper's equations, written down again as a loop over tokens.

Zhang et al. 2024, arXiv 2409.07146. The loop is in float64 and takes the weights of the package, nothing else.

Tolerance: the same loop run in float32 says how strongly these equations and these weights enlarge roundings. Its
error, times MARGIN, is what may come of a state in float32, which a decode step reads and writes. A calculation
that is all float64 may err by 2 ** -29 of that, the ratio of the two units of rounding. MARGIN is for sums in
another order: chunks instead of tokens, one row of many instead of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

import archc  # noqa: E402
from tests.support.imports import imported  # noqa: E402

SPEC = Path(__file__).parents[2] / "docs" / "examples" / "slot_hybrid.yaml"
HEADS, KV_HEADS, SLOTS, WIDTH, TAU, EPS = 4, 2, 16, 32, 8.0, 1e-5
TOKENS = 150  # more than two chunks of 64
MARGIN = 16.0
FLOAT64 = 2.0**-29


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The example, built into a folder of its own and imported from there."""
    folder = tmp_path_factory.mktemp("slots")
    archc.build(SPEC, folder / "slot_hybrid")
    return imported("slot_hybrid", folder)


@pytest.fixture(scope="module")
def model(package: ModuleType) -> Any:
    """In float64, with weights for which gates, scores and norms are far from the middle."""
    torch.manual_seed(0)
    model = package.Model().double().eval()
    with torch.no_grad():
        for layer in model.layers[:3]:
            mixer = layer.mixer
            for weight, factor in ((mixer.q, 6), (mixer.k, 6), (mixer.v, 6), (mixer.log_alpha, 12)):
                weight.weight.mul_(factor)
            mixer.y_norm.weight.copy_(torch.empty_like(mixer.y_norm.weight).uniform_(0.5, 2))
    return model


@pytest.fixture(scope="module")
def tokens() -> Any:
    return torch.randint(256, (2, TOKENS), generator=torch.Generator().manual_seed(1))


def weights(mixer: Any, dtype: Any = torch.float64) -> dict[str, Any]:
    return {name: value.detach().to(dtype).requires_grad_() for name, value in mixer.named_parameters()}


def paper(x: Any, w: dict[str, Any], wrong: str = "") -> Any:
    """The paper's equations, token by token, for `x [B, T, D]`; `wrong` names a mistake to make on purpose."""
    rows, length, _ = x.shape

    def project(name: str, heads: int) -> Any:
        return (x @ w[f"{name}.weight"].T).view(rows, length, heads, -1)

    q, k, v = F.silu(project("q", HEADS)), F.silu(project("k", KV_HEADS)), project("v", KV_HEADS)
    v = v if wrong == "v without silu" else F.silu(v)
    tau = 1.0 if wrong == "no temperature" else TAU
    alpha = torch.sigmoid(project("log_alpha", KV_HEADS)) ** (1 / tau)
    share = HEADS // KV_HEADS
    of = [h % KV_HEADS if wrong == "heads in turn" else h // share for h in range(HEADS)]
    keys = x.new_zeros(rows, HEADS, SLOTS, WIDTH)
    values = x.new_zeros(rows, HEADS, SLOTS, WIDTH)
    out = []
    for t in range(length):
        keep = alpha[:, t, of, :, None]
        read = keys, values
        write = torch.ones_like(keep) if wrong == "keys written whole" else 1 - keep
        keys = keep * keys + write * k[:, t, of, None, :]
        write = torch.ones_like(keep) if wrong == "values written whole" else 1 - keep
        values = keep * values + write * v[:, t, of, None, :]
        at_keys, at_values = read if wrong == "read before write" else (keys, values)
        scores = torch.einsum("bhmd,bhd->bhm", at_keys, q[:, t])
        scores = scores * WIDTH**-0.5 if wrong == "scaled scores" else scores
        p = scores if wrong == "no softmax" else torch.softmax(scores, -1)
        out.append(torch.einsum("bhmd,bhm->bhd", at_values, p))
    o = torch.stack(out, 1)
    o = o if wrong == "no silu" else F.silu(o)
    axes = (-1,) if wrong == "a norm for each head" else (-2, -1)
    o = o / (o.square().mean(axes, keepdim=True) + EPS).sqrt() * w["y_norm.weight"].view(HEADS, WIDTH)
    return o.flatten(-2) @ w["y.weight"].T


def float32_error(x: Any, mixer: Any) -> float:
    """How far the loop in float32 is from the loop in float64."""
    exact, rounded = paper(x, weights(mixer)), paper(x.float(), weights(mixer, torch.float32))
    return float((exact - rounded.double()).abs().max())


def captured(model: Any, layer: int, tokens: Any, **options: Any) -> tuple[Any, Any]:
    """What the mixer of a layer took and gave."""
    place = f"layers.{layer}.mixer"
    _, seen = model(tokens, capture=[f"{place}.x", f"{place}.y"], **options)
    return seen[f"{place}.x"], seen[f"{place}.y"]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_mixer_is_the_papers(model: Any, tokens: Any, layer: int) -> None:
    with torch.no_grad():
        x, y = captured(model, layer, tokens)
        mixer = model.layers[layer].mixer
        error = (y - paper(x, weights(mixer))).abs().max()
        assert error <= MARGIN * FLOAT64 * float32_error(x, mixer)


@pytest.mark.parametrize(
    "wrong",
    [
        "v without silu",
        "no temperature",
        "heads in turn",
        "keys written whole",
        "values written whole",
        "read before write",
        "scaled scores",
        "no softmax",
        "no silu",
        "a norm for each head",
    ],
)
def test_a_mistake_would_be_seen(model: Any, tokens: Any, wrong: str) -> None:
    """Each mistake is far outside the wider of the two tolerances."""
    with torch.no_grad():
        x, y = captured(model, 0, tokens)
        mixer = model.layers[0].mixer
        error = (y - paper(x, weights(mixer), wrong)).abs().max()
        assert error > 100 * MARGIN * float32_error(x, mixer)


def test_gradients(model: Any, tokens: Any) -> None:
    """Those of all weights of the mixer, against autograd through the loop."""
    mixer = model.layers[0].mixer
    x, y = captured(model, 0, tokens)
    x = x.detach()
    seed = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))

    def through(loop: Callable[[], Any], over: list[Any]) -> list[Any]:
        result = loop()
        return list(torch.autograd.grad((result * seed.to(result.dtype)).sum(), over))

    exact_weights, rounded_weights = weights(mixer), weights(mixer, torch.float32)
    found = through(lambda: y, list(mixer.parameters()))
    exact = through(lambda: paper(x, exact_weights), list(exact_weights.values()))
    rounded = through(lambda: paper(x.float(), rounded_weights), list(rounded_weights.values()))
    for name, mine, wanted, coarse in zip(exact_weights, found, exact, rounded, strict=True):
        tolerance = MARGIN * FLOAT64 * (wanted - coarse.double()).abs().max()
        assert (mine - wanted).abs().max() <= tolerance, name


@pytest.mark.parametrize("prompt", [1, 64, 90])
def test_prefill_and_decode(model: Any, tokens: Any, prompt: int) -> None:
    """A prompt at once, then token by token, is the loop and is the whole; states are float32."""
    mixer = model.layers[0].mixer
    with torch.no_grad():
        whole = model(tokens)
        state = model.init_state(batch_size=2, max_length=TOKENS)
        logits, inputs, outputs = [], [], []
        cuts = [0, prompt, *range(prompt + 1, TOKENS + 1)]
        for begin, end in zip(cuts, cuts[1:], strict=False):
            place = "layers.0.mixer"
            piece, seen = model(tokens[:, begin:end], state=state, capture=[f"{place}.x", f"{place}.y"])
            logits.append(piece)
            inputs.append(seen[f"{place}.x"])
            outputs.append(seen[f"{place}.y"])
        x = torch.cat(inputs, 1)
        error = (torch.cat(outputs, 1) - paper(x, weights(mixer))).abs().max()
        assert error <= MARGIN * float32_error(x, mixer)
        # For the logits: what float32 does to the whole model.
        coarse = type(model)().eval()
        coarse.load_state_dict(model.state_dict())
        tolerance = MARGIN * (coarse(tokens).double() - whole).abs().max()
        assert (torch.cat(logits, 1) - whole).abs().max() <= tolerance
    assert state.length.tolist() == [TOKENS, TOKENS]


def test_packed_sequences(model: Any, tokens: Any) -> None:
    """Sequences in one row, an empty one among them, are what each is alone; and are the loop."""
    mixer = model.layers[0].mixer
    lengths = [70, 0, 1, 64, 15]
    borders = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    row = tokens[:1]
    with torch.no_grad():
        packed = model(row, cu_seqlens=torch.tensor(borders))
        x, y = captured(model, 0, row, cu_seqlens=torch.tensor(borders))
        coarse = type(model)().eval()
        coarse.load_state_dict(model.state_dict())
        for begin, end in zip(borders, borders[1:], strict=False):
            if begin == end:
                continue
            alone = model(row[:, begin:end])
            tolerance = MARGIN * FLOAT64 * (coarse(row[:, begin:end]).double() - alone).abs().max()
            assert (packed[:, begin:end] - alone).abs().max() <= tolerance
            own = x[:, begin:end]
            error = (y[:, begin:end] - paper(own, weights(mixer))).abs().max()
            assert error <= MARGIN * FLOAT64 * float32_error(own, mixer)
        # A memory that leaks from one sequence to the next would be seen.
        leaked = paper(x, weights(mixer))[:, borders[1] :] - y[:, borders[1] :]
        assert leaked.abs().max() > 100 * MARGIN * float32_error(x, mixer)
