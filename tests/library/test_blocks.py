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
}  # fmt: skip
STREAMS = (pre_norm, pre_norm_single, post_norm, sandwich_norm, parallel, two_mixers)


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

    norms = {
        name.removesuffix("_norm.weight"): normed(weight)
        for name, weight in layer.named_parameters()
        if name.endswith("_norm.weight")
    }
    (x, y), exact = seen[0], stream(seen[0][0].double(), norms)
    # About six operations follow one another, none of which is steeper than 4.
    assert float((y - exact).abs().max()) <= 4 * 6 * EPS * float(exact.abs().max())
    assert float((x - y).abs().max()) > 0.1, "a block that does nothing would pass"
