"""What the operation makes of its arguments: decays that are products, heads of queries, the dtype of states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import archc
from archc import pipeline
from tests.support.imports import imported

T, K, V = 96, 16, 24

# A decay in every element of the state, as people write it. `A` is negative, `dt` positive.
PRODUCTS = {
    "rate * step": "A * dt",
    "step * rate": "dt * A",
    "sign outside": "-(dt * exp(A_log))",
    "sign inside": "-dt * exp(A_log)",
    "three factors": "2 * dt * A * speed",
    "a quotient": "A * dt / 16",
    "over a number of the model": "-dt / exp(-A_log)",
    "a factor of the value axis": "A * (dt * width_gate)",
    "outer": "outer(dt, -exp(B_log))",
    "outer turned round": "outer(-exp(B_log), dt)",
    "one step": "step_all * A",
}
WHOLE = {
    "no product": "min(A * dt, 0)",
    "a step of both axes": "A * outer(dt, gate)",
}


def spec(decay: str) -> dict[str, Any]:
    """A model with this decay in its one mixer."""
    body = {
        "A_log": f"param(A_weight, [{'width, size'}], init=uniform(-1, 1))",
        "B_log": "param(B_weight, [size], init=uniform(-1, 1))",
        "A": "-exp(A_log)",
        "speed": "exp(param(speed_weight, [width], init=uniform(-1, 1)))",
        "width_gate": "sigmoid(linear(x, [width]))",
        "gate": "sigmoid(linear(x, [size]))",
        "step_all": "softplus(sum(linear(x, 1)))",
        "dt": "softplus(linear(x, [width]))",
        "q": "linear(x, [size])",
        "k": "linear(x, [size])",
        "v": "linear(x, [width])",
        "o": f"recurrence(q, k, v, decay={decay}, scale=1)",
        "y": "linear(o, d_model)",
    }
    while unread := [n for n in body if n != "y" and not any(n in _names(body[m]) for m in body if m != n)]:
        for name in unread:
            del body[name]
    return {
        "archc": 1,
        "name": "one",
        "model": {"vocab_size": 32, "d_model": 32, "n_layers": 1, "context": T},
        "mixers": {"own": {"params": {"size": K, "width": V}, "body": body}},
        "blocks": {"main": {"mixer": {"use": "own"}, "mlp": {"use": "swiglu", "d_ff": 8}}},
    }


def _names(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


class Sizes(TorchDispatchMode):
    """The most entries of any tensor that an operation gives back, inside the recurrence's own operations too."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__()
        self.largest = 0
        self.inside = {
            module.chunk._opoverload: module.chunk_forward,
            module.chunk_reverse._opoverload: module.chunk_backward,
        }
        self.entered: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.inside:  # a mode does not see what an operation calls: call it here
            self.entered.add(func)
            with self:
                return self.inside[func](*args)
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return found


def largest(decay: str) -> int:
    """The largest tensor of a forward and a backward over T tokens, and that all weights have gradients."""
    package = archc.load(spec(decay))
    names = ("elementwise_decay_rate", "elementwise_decay")
    name = next(name for name in names if (Path(package.__path__[0]) / f"{name}.py").exists())
    model = package.Model()
    with Sizes(imported(f"{package.__name__}.{name}")) as sizes:
        model(torch.arange(T)[None] % 32).sum().backward()
    assert len(sizes.entered) == 2
    assert all(parameter.grad is not None for parameter in model.parameters())
    return sizes.largest


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_stays_two_factors(name: str) -> None:
    """Neither the decay nor the state exists for all tokens, forward or backward; chunks of 16 tokens do."""
    assert largest(PRODUCTS[name]) < T * K * V / 2


@pytest.mark.parametrize("name", WHOLE)
def test_other_decays_are_given_whole(name: str) -> None:
    """Which the size of a tensor tells, so the test above would see one."""
    assert largest(WHOLE[name]) >= T * K * V


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_what_it_was(name: str) -> None:
    """The same numbers and gradients as of the decay given whole, in float64."""
    torch.manual_seed(0)
    model = archc.load(spec(PRODUCTS[name])).Model().double()
    other = archc.load(spec(f"min({PRODUCTS[name]}, 0)")).Model().double()
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(32, (2, 40), generator=torch.Generator().manual_seed(1))
    found = [_slopes(each, tokens) for each in (model, other)]
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-9, atol=1e-12)


def _slopes(model: nn.Module, tokens: Tensor) -> Mapping[str, Tensor]:
    logits = model(tokens)
    logits.square().sum().backward()
    return {"logits": logits, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_of_states(dtype: torch.dtype) -> None:
    """Float32, and float64 in a model of float64."""
    package = archc.load(spec("A * dt"))
    model = package.Model(dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state = model.init_state(1)
    assert [value.dtype for value in state.memory.values()] == [wide]
    if dtype in (torch.float64, torch.float32):
        tokens = torch.arange(20)[None]
        with torch.no_grad():
            whole = model(tokens)
            pieces = torch.cat([model(piece, state=state) for piece in tokens.split([7, 1, 12], 1)], 1)
        assert float((whole - pieces).abs().max()) < 100 * torch.finfo(wide).eps


# A gate that is the same for all tokens, and the same as a value of each token.
CONSTANT = {
    "a decay a key channel": ("decay=-exp(per_key)", "decay=-exp(per_key) * one_k"),
    "a decay a key channel for all heads": ("decay=-exp(shared)", "decay=-exp(repeated) * one_k"),
    "a decay a value channel": ("decay_v=-exp(per_value)", "decay_v=-exp(per_value) * one_v"),
    "a decay an entry": ("decay=-exp(per_entry)", "decay=min(-exp(per_entry) * outer(one_k, one_v), 0)"),
    "a decay a head": ("decay=-exp(per_head)", "decay=-exp(per_head) * one"),
    "a number as a decay": ("decay=-0.5", "decay=-0.5 * one"),
    "a beta": ("beta=sigmoid(per_head)", "beta=sigmoid(per_head) * one"),
    "a number as a beta": ("beta=1", "beta=one"),
}


SHARED = "a decay a key channel for all heads"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "heads"),
    [(name, heads) for name in CONSTANT for heads in (True, False) if heads or name != SHARED],
)
def test_gates_without_tokens(name: str, heads: bool) -> None:
    """Lifted to all tokens: the same numbers as of the gate written for each token, in float64."""
    models = [archc.load(_constant(text, heads)).Model().double() for text in CONSTANT[name]]
    weights = models[0].state_dict()
    models[1].load_state_dict({**models[1].state_dict(), **weights})
    tokens = torch.randint(32, (2, 40), generator=torch.Generator().manual_seed(1))
    found = [_slopes(model, tokens) for model in models]
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-9, atol=1e-12)


def _constant(gate: str, heads: bool) -> dict[str, Any]:
    head = ["heads"] if heads else []

    def axes(*names: str) -> str:
        return f"[{', '.join([*head, *names])}]"

    body = {
        "per_head": f"param(a, {axes()}, init=normal(0, 1))"
        if heads
        else "sum(param(a, [one_axis], init=1))",
        "per_key": f"param(b, {axes('size')}, init=normal(0, 1))",
        "per_value": f"param(c, {axes('width')}, init=normal(0, 1))",
        "per_entry": f"param(d, {axes('size', 'width')}, init=normal(0, 1))",
        "shared": "param(e, [size], init=0.5)",
        "repeated": "shared * ones([heads, size])",
        "one_k": "exp(0 * k)",
        "one_v": "exp(0 * v)",
        "one": "exp(0 * sum(k))",
        "q": f"linear(x, {axes('size')})",
        "k": f"linear(x, {axes('size')})",
        "v": f"linear(x, {axes('width')})",
        "o": f"recurrence(q, k, v, {gate}, scale=1)",
        "y": "linear(o, d_model)",
    }
    while unread := [n for n in body if n != "y" and not any(n in _names(body[m]) for m in body if m != n)]:
        for name in unread:
            del body[name]
    params = {"heads": 2, "size": 4, "width": 6, "one_axis": 1}
    params = {name: value for name, value in params.items() if name in _names(" ".join(body.values()))}
    return {**spec("A * dt"), "mixers": {"own": {"params": params, "body": body}}}


def test_a_state_for_each_head_that_writes() -> None:
    """Four heads of q over two of k and v: a state of two, in the package as in what is printed beforehand."""
    use = {"use": "gla", "n_heads": 4, "n_kv_heads": 2, "expand_k": 1}
    grouped = {
        **spec("A * dt"),
        "mixers": {},
        "blocks": {"main": {"mixer": use, "mlp": {"use": "swiglu", "d_ff": 8}}},
    }
    state = archc.load(grouped).Model().init_state(3)
    assert [tuple(value.shape) for value in state.memory.values()] == [(3, 2, 8, 8)]
    assert pipeline.cost(grouped, batch_size=3).state_bytes == 3 * 2 * 8 * 8 * 4


def test_one_state_for_all_queries() -> None:
    """Keys, values and decays without heads: one state, read by each head of q, as if they were repeated."""
    body = {
        "q": "linear(x, [heads, size])",
        "k": "linear(x, [size])",
        "v": "linear(x, [width])",
        "decay": "logsigmoid(linear(x, [size]))",
        "o": "recurrence(q, k, v, decay=decay, scale=1)",
        "y": "linear(o, d_model)",
    }
    several = {
        **body,
        "each": "ones([heads, size])",
        "o": "recurrence(q, k * each, v * ones([heads, width]), decay=decay * each, scale=1)",
    }
    params = {"heads": 3, "size": 4, "width": 5}
    models = [
        archc.load({**spec("A * dt"), "mixers": {"own": {"params": params, "body": each}}}).Model().double()
        for each in (body, several)
    ]
    models[1].load_state_dict(models[0].state_dict())
    shapes = [[tuple(value.shape[1:]) for value in model.init_state(1).memory.values()] for model in models]
    assert shapes == [[(1, 4, 5)], [(3, 4, 5)]]
    tokens = torch.randint(32, (2, 40), generator=torch.Generator().manual_seed(1))
    found = [_slopes(model, tokens) for model in models]
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-9, atol=1e-12)
