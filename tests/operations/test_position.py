"""position(): the token's index in its sequence, in every way of asking; roll: entries moved on in a circle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from archc.pipeline import check
from tests.language.check import ROUNDING, distance, exact, inputs, linear, spec_of, worst_way
from tests.support.packages import package, random_model

PARAMS = {"n_heads": 2, "head_dim": 8, "period": 7}
ANGLES = spec_of(
    "angles",
    {
        "angle": "position() * param(theta, [n_heads, head_dim], init=normal(0, 1)) / period",
        "q": "linear(x, [n_heads, head_dim])",
        "k": "linear(x, [n_heads, head_dim])",
        "v": "linear(x, [n_heads, head_dim])",
        "o": "recurrence(q * cos(angle), k * cos(angle), v, scale=auto) / (position() + 1)",
        "y": "linear(o, d_model)",
    },
    PARAMS,
)


def by_hand(mixer: nn.Module, x: Tensor) -> Tensor:
    """The mixer above as a loop over tokens: `x [T, D]`."""
    q, k, v = (linear(mixer, name, x, 2, 8) for name in "qkv")
    state, rows = torch.zeros(2, 8, 8, dtype=x.dtype), []
    for t in range(len(x)):
        turn = torch.cos(mixer.theta * t / 7)
        state = state + (k[t] * turn).unsqueeze(-1) * v[t].unsqueeze(-2)
        rows.append(torch.einsum("hk,hkv->hv", q[t] * turn, state) * 8**-0.5 / (t + 1))
    return torch.stack(rows).flatten(1) @ mixer.y.weight.T


@pytest.mark.parametrize("length", [1, 2, 23, 70])
def test_values(length: int) -> None:
    assert distance(ANGLES, by_hand, length) < ROUNDING


def test_every_way() -> None:
    """Dense, packed, padded, in pieces and token by token: the sequence counts, not the row."""
    worst, way, count = worst_way(ANGLES)
    assert count == 16
    assert worst < ROUNDING, way


def test_far_positions_in_half_precision() -> None:
    """A bfloat16 has no whole number above 256: angles are float32 there too, with the parameters they are made of."""
    model = random_model(ANGLES).bfloat16()
    mixer = model.layers[0].mixer
    assert mixer.theta.dtype == torch.float32
    place = __import__(f"{package(ANGLES).__name__}.place", fromlist=["place"])
    x = inputs(300, rows=1).bfloat16()
    layout = place.dense_layout(x)._replace(positions_BT=torch.arange(1000, 1300)[None])
    seen = place.Place(layout, patterns=("angle", "o"))
    y = mixer(x, seen)
    assert y.dtype == torch.bfloat16
    assert seen.captured["o"].dtype == torch.bfloat16
    assert seen.captured["angle"].dtype == torch.float32
    want = torch.arange(1000, 1300)[:, None, None] * mixer.theta / 7
    torch.testing.assert_close(seen.captured["angle"][0], want)


def test_places_as_features_in_half_precision() -> None:
    """Sinusoids of the place through a matrix, and beside other features: float32 angles, bfloat16 from there on."""
    spec = spec_of(
        "sinusoids",
        {
            "angle": "position() * exp(-arange(head_dim))",
            "feature": "concat(sin(angle), cos(angle))",
            "beside": "concat(feature, linear(x, [head_dim], name=own))",
            "y": "linear(feature, d_model) + linear(beside, d_model, name=second)",
        },
        PARAMS,
    )

    def definition(mixer: nn.Module, x: Tensor) -> Tensor:
        angle = torch.arange(len(x))[:, None] * torch.exp(-torch.arange(8))
        feature = torch.cat([angle.sin(), angle.cos()], -1).double()
        beside = torch.cat([feature, linear(mixer, "own", x, 8)], -1)
        return feature @ mixer.y.weight.T + beside @ mixer.second.weight.T

    assert distance(spec, definition, 30) < 1e-6  # angles are float32 in a float64 model too
    tokens = torch.randint(64, (2, 300))
    model = random_model(spec)
    with torch.no_grad():
        exact, half = model(tokens), model.bfloat16()(tokens)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_gradients() -> None:
    mixer = exact(ANGLES).layers[0].mixer
    place = __import__(f"{package(ANGLES).__name__}.place", fromlist=["place"])
    x = inputs(5).requires_grad_()

    def run(x: Tensor, theta: Tensor) -> Tensor:
        given = {**dict(mixer.named_parameters()), "theta": theta}
        found: Tensor = torch.func.functional_call(mixer, given, (x, place.Place(place.dense_layout(x))))
        return found

    assert torch.autograd.gradcheck(run, (x, mixer.theta.detach().clone().requires_grad_()))


@pytest.mark.slow
def test_one_graph() -> None:
    torch._dynamo.reset()
    model = random_model(ANGLES)
    quick = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    tokens = torch.randint(64, (2, 40))
    with torch.no_grad():
        for length in (3, 17, 40):
            torch.testing.assert_close(quick(tokens[:, :length]), model(tokens[:, :length]))


def test_keys_computed_again() -> None:
    """A cached value gives the same key later: what is cached need not hold the position."""
    spec = spec_of(
        "again",
        {
            "c": "linear(x, head_dim)",
            "k": "linear(c, [n_heads, head_dim]) * cos(position() / period)",
            "v": "linear(c, [n_heads, head_dim])",
            "y": "linear(attention(linear(x, [n_heads, head_dim], name=q), k, v, cache=[c]), d_model)",
        },
        PARAMS,
    )
    entries = {name.rpartition(".")[2] for name in exact(spec).init_state(batch_size=1).tensors()}
    assert entries >= {"c"} and not entries & {"k", "v"}
    worst, way, _ = worst_way(spec)
    assert worst < ROUNDING, way


@pytest.mark.parametrize("steps", [0, 1, 3, -1, 17])
def test_roll(steps: int) -> None:
    spec = spec_of(
        "rolled",
        {
            "u": "linear(x, [n_heads, head_dim])",
            "y": "linear(u * roll(u, steps) + roll(u, steps, over=n_heads), d_model)",
        },
        {**PARAMS, "steps": {"type": "int", "default": steps}},
    )

    def definition(mixer: nn.Module, x: Tensor) -> Tensor:
        u = linear(mixer, "u", x, 2, 8)
        last = torch.stack([u[..., (i - steps) % 8] for i in range(8)], -1)
        heads = torch.stack([u[:, (h - steps) % 2] for h in range(2)], 1)
        return (u * last + heads).flatten(1) @ mixer.y.weight.T  # type: ignore[union-attr]

    assert distance(spec, definition, 5) < ROUNDING


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("roll(x, 1/2)", "E321"),
        ("roll(x, 1, over=period)", "E353"),
        ("roll(position(), 1)", "E353"),
        ("position(x)", "E310"),
    ],
)
def test_mistakes(call: str, code: str) -> None:
    spec = spec_of("wrong", {"y": f"linear({call}, d_model)"}, {"period": 7})
    assert code in {one.code for one in check(spec)}
