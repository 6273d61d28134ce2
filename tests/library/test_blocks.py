"""The library's blocks against their residual streams written by hand, with sublayers that are known functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archc
from tests.library.conftest import randomise

ATTENTION = {"use": "attention", "n_heads": 4}
MLP = {"use": "swiglu", "d_ff": 16}
EPS = torch.finfo(torch.float32).eps

Function = Callable[[Tensor], Tensor]


def first(x: Tensor) -> Tensor:
    """In the place of a mixer. Like the others it is neither odd nor homogeneous: no slip of a sign is undone."""
    return torch.sin(x + 1)


def second(x: Tensor) -> Tensor:
    """In the place of another mixer."""
    return torch.cos(2 * x - 1)


def last(x: Tensor) -> Tensor:
    """In the place of an MLP."""
    return torch.sigmoid(3 * x + 1)


def pre_norm(x: Tensor, norm: dict[str, Function]) -> Tensor:
    h = x + first(norm["h"](x))
    return h + last(norm["y"](h))


def pre_norm_single(x: Tensor, norm: dict[str, Function]) -> Tensor:
    return x + first(norm["y"](x))


def post_norm(x: Tensor, norm: dict[str, Function]) -> Tensor:
    h = norm["h"](x + first(x))
    return norm["y"](h + last(h))


def sandwich_norm(x: Tensor, norm: dict[str, Function]) -> Tensor:
    h = x + norm["h"](first(norm["u"](x)))
    return h + norm["y"](last(norm["w"](h)))


def parallel(x: Tensor, norm: dict[str, Function]) -> Tensor:
    u = norm["u"](x)
    return x + first(u) + last(u)


def parallel_norms(x: Tensor, norm: dict[str, Function]) -> Tensor:
    return x + first(norm["u"](x)) + last(norm["w"](x))


def output_norm(x: Tensor, norm: dict[str, Function]) -> Tensor:
    h = x + norm["h"](first(x))
    return h + norm["y"](last(h))


def deepnorm(x: Tensor, norm: dict[str, Function]) -> Tensor:
    alpha = 2**0.25  # (2 n_layers) ** 0.25 with one layer
    h = norm["h"](alpha * x + first(x))
    return norm["y"](alpha * h + last(h))


def normed_residual(x: Tensor, norm: dict[str, Function]) -> Tensor:
    u = norm["u"](x)
    w = norm["w"](2**0.25 * u + 0.5 * first(u))
    return 3 * w + 0.5 * last(w)


def scaled_residual(x: Tensor, norm: dict[str, Function]) -> Tensor:
    h = x + 0.5**0.5 * first(norm["h"](x))
    return h + 0.5**0.5 * last(norm["y"](h))


def layer_scale(x: Tensor, norm: dict[str, Function]) -> Tensor:
    h = x + norm["mixer_scale"](first(norm["h"](x)))
    return h + norm["mlp_scale"](last(norm["y"](h)))


def mlp_only(x: Tensor, norm: dict[str, Function]) -> Tensor:
    return x + last(norm["y"](x))


def mean_mixers(x: Tensor, norm: dict[str, Function]) -> Tensor:
    u = norm["u"](x)
    h = x + 0.5 * (norm["a"](first(u)) + norm["b"](second(u)))
    return h + last(norm["y"](h))


def gated_mixers(x: Tensor, norm: dict[str, Function]) -> Tensor:
    u = norm["u"](x)
    gate = torch.sigmoid(norm["gate"](u))
    h = x + gate * first(u) + (1 - gate) * second(u)
    return h + last(norm["y"](h))


def two_mixers(x: Tensor, norm: dict[str, Function]) -> Tensor:
    u = norm["u"](x)
    h = x + 0.5 * first(u) + 2 * second(u)
    return h + last(norm["y"](h))


PARTS: dict[str, dict[str, Any]] = {
    "pre_norm": {"mixer": ATTENTION, "mlp": MLP},
    "pre_norm_single": {"mixer": ATTENTION},
    "post_norm": {"mixer": ATTENTION, "mlp": MLP},
    "sandwich_norm": {"mixer": ATTENTION, "mlp": MLP},
    "parallel": {"mixer": ATTENTION, "mlp": MLP},
    "two_mixers": {
        "first_mixer": ATTENTION, "second_mixer": ATTENTION, "mlp": MLP, "first_scale": 0.5, "second_scale": 2,
    },
    "parallel_norms": {"mixer": ATTENTION, "mlp": MLP},
    "output_norm": {"mixer": ATTENTION, "mlp": MLP},
    "deepnorm": {"mixer": ATTENTION, "mlp": MLP},
    "normed_residual": {"mixer": ATTENTION, "mlp": MLP, "beta": 0.5, "mlp_alpha": 3},
    "scaled_residual": {"mixer": ATTENTION, "mlp": MLP},
    "layer_scale": {"mixer": ATTENTION, "mlp": MLP},
    "mlp_only": {"mlp": MLP},
    "mean_mixers": {"first_mixer": ATTENTION, "second_mixer": ATTENTION, "mlp": MLP},
    "gated_mixers": {"first_mixer": ATTENTION, "second_mixer": ATTENTION, "mlp": MLP},
}  # fmt: skip
STREAMS = (
    pre_norm, pre_norm_single, post_norm, sandwich_norm, parallel, two_mixers, parallel_norms, output_norm, deepnorm,
    normed_residual, scaled_residual, layer_scale, mlp_only, mean_mixers, gated_mixers,
)  # fmt: skip


def test_every_block_of_the_library_has_its_stream(repository: Any) -> None:
    names = {path.stem for path in (repository / "specs" / "blocks").glob("*.yaml")}
    assert names == set(PARTS) == {stream.__name__ for stream in STREAMS}


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.__name__)
def test_residual_stream(stream: Callable[[Tensor, dict[str, Function]], Tensor]) -> None:
    name = stream.__name__
    spec = {
        "archc": 1,
        "name": "probe",
        "model": {"vocab_size": 64, "d_model": 48, "n_layers": 1, "context": 128, "norm": "rmsnorm"},
        "blocks": {"main": {"use": name, **PARTS[name]}},
        "layers": ["1 main"],
    }
    model: nn.Module = archc.load(spec).Model()
    randomise(model)
    layer = model.get_submodule("layers.0")
    known = {"mixer": first, "first_mixer": first, "second_mixer": second, "mlp": last}
    for slot, _ in layer.named_children():
        if slot in known:
            layer.get_submodule(slot).forward = lambda x, place, slot=slot: known[slot](x)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    with torch.no_grad():
        model(torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(2)))
    handle.remove()

    def normed(weight: Tensor) -> Function:
        return lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight.detach().double()

    def scaled(weight: Tensor) -> Function:
        return lambda x: x * weight.detach().double()

    def affine(weight: Tensor, bias: Tensor) -> Function:
        return lambda x: x @ weight.detach().double().T + bias.detach().double()

    own = {name: weight for name, weight in layer.named_parameters() if name.split(".")[0] not in known}
    norms = {
        name.removesuffix("_norm.weight"): normed(weight)
        for name, weight in own.items()
        if name.endswith("_norm.weight")
    }
    norms |= {name: scaled(weight) for name, weight in own.items() if name.endswith("_scale")}
    if "gate.weight" in own:
        norms["gate"] = affine(own["gate.weight"], own["gate.bias"])
    assert len(norms) == len({name.split(".")[0] for name in own}), "a weight that the stream does not know"
    (x, y), exact = seen[0], stream(seen[0][0].double(), norms)
    # About six operations follow one another, none of which is steeper than 4.
    assert float((y - exact).abs().max()) <= 4 * 6 * EPS * float(exact.abs().max())
    assert float((x - y).abs().max()) > 0.1, "a block that does nothing would pass"
