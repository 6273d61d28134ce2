"""The fused decode step of whole mixers, interpreted, beside their torch form: after a prefill, several tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from archc.codegen.package import package_files
from archc.graph.types import Graph, Module
from archc.kernels.fusing import decode as fuse
from archc.kernels.fusing.decode import Fused, fuse_decode, module_file, token_kernels, why_not
from archc.kernels.targets import load_target
from archc.pipeline import graph_of
from tests.support.imports import imported
from tests.support.slow import mostly_slow

GATED_DELTA = """
    body:
      q: linear(x, [n_heads, head_dim]) | conv1d(4) | silu | l2norm(eps=1e-6)
      k: linear(x, [n_heads, head_dim]) | conv1d(4) | silu | l2norm(eps=1e-6)
      v: linear(x, [n_v_heads, v_dim]) | conv1d(4, bias=true) | silu
      b: 2 * sigmoid(linear(x, [n_v_heads], bias=true))
      S: -exp(param(scale, [n_v_heads], init=log(uniform(1, 16)))) * softplus(linear(x, [n_v_heads]) - 2)
      o: recurrence(q, k, v, decay=S, beta=b, scale=auto)
      y: linear(rmsnorm(o) * silu(linear(x, [n_v_heads, v_dim], name=gate)), d_model)
"""
ONE_HEAD = """
    body:
      q: linear(x, head_dim) | softplus
      k: linear(x, head_dim) | tanh
      v: linear(x, v_dim) | elu
      o: recurrence(q, k, v, decay_v=logsigmoid(linear(x, v_dim, name=low)), read=exclusive, scale=1/3)
      y: linear(layernorm(o) + v * sum(q * k, over=head_dim) * mean(q, over=head_dim), d_model)
"""
PAIR = """
    body:
      kk: l2norm(linear(x, [n_heads, head_dim]) | conv1d(1))
      a: sigmoid(linear(linear(x, 8, name=a_low), [n_heads, head_dim]))
      q: linear(x, [n_heads, head_dim])
      v: linear(x, [n_heads, v_dim])
      decay: max(-exp(linear(x, [n_heads, head_dim])), -5)
      o: recurrence(q, kk * a, v, decay=decay, erase_write=-kk * a, erase_read=kk, erase_from=previous, scale=1)
      y: linear(o * 2, d_model, bias=true)
"""
JOINT = """
    body:
      mixed: silu(conv1d(linear(x, n_v_heads * v_dim + 2 * n_heads * head_dim), 4, bias=true))
      v, k, q: split(mixed, [n_v_heads, v_dim], [n_heads, head_dim], [n_heads, head_dim])
      dt: softplus(linear(x, [n_v_heads]) + param(dt_bias, [n_v_heads], init=0.1))
      o: recurrence(q, k, dt * v, decay=-dt, scale=1) + param(D, [n_v_heads], init=1) * v
      y: linear(o * silu(linear(x, [n_v_heads, v_dim], name=z)), d_model)
"""


def own(body: str, n_heads: int = 3, n_v_heads: int = 3, head_dim: int = 16, v_dim: int = 24) -> str:
    """A mixer of equations that stand in the model, with sizes of its own."""
    sizes = {"n_heads": n_heads, "n_v_heads": n_v_heads, "head_dim": head_dim, "v_dim": v_dim}
    lines = [f"      {name}: {{type: int, default: {size}}}" for name, size in sizes.items() if name in body]
    lines = [
        line.replace("default", "divides: n_v_heads, default")
        if line.startswith("      n_heads") and "n_v_heads" in body
        else line
        for line in lines
    ]
    return "\n".join(["", "    params:", *lines]) + body


# name -> (mixer, launches of a token)
MIXERS = {
    "gated_delta": ("{use: gated_deltanet, n_heads: 2, head_dim: 24, expand_v: 2, conv: 4}", 3),
    "gated_delta_grouped": ("{use: gated_deltanet, n_heads: 2, n_v_heads: 4, head_dim: 16, expand_v: 1}", 4),
    "channel_delta": ("{use: kda, n_heads: 3, head_dim: 16}", 4),
    "channel_delta_biased": ("{use: kda, n_heads: 2, head_dim: 16, expand_v: 2, gate_bias: true}", 5),
    "channel_decay": ("{use: gla, n_heads: 2}", 4),
    "channel_decay_grouped": ("{use: gla, n_heads: 6, n_kv_heads: 2}", 4),
    "own_delta": (own(GATED_DELTA), 3),
    "own_delta_grouped": (own(GATED_DELTA, 1), 4),
    "one_head": (own(ONE_HEAD), 3),
    "pair": (own(PAIR), 4),
    "joint": (own(JOINT, 1), 4),
}


class Loaded:
    """A small model with the kernels of its mixer."""

    def __init__(self, name: str, folder: Path) -> None:
        mixer, self.launches = MIXERS[name]
        spec = folder / f"{name}.yaml"
        spec.write_text(
            f"archc: 1\nname: {name}\nmodel: {{vocab_size: 64, d_model: 48, n_layers: 1, context: 128}}\n"
            + (
                f"blocks:\n  main:\n    mixer: {mixer}\n    mlp: {{use: swiglu}}\n"
                if mixer.startswith("{")
                else f"mixers:\n  own:{mixer}\nblocks:\n  main:\n    mixer: {{use: own}}\n    mlp: {{use: swiglu}}\n"
            )
        )
        self.graph: Graph = graph_of(spec)
        graph = self.graph
        self.module: Module = next(m for m in graph.modules.values() if m.body.kind == "mixer")
        found = fuse_decode(self.module)
        assert found is not None
        self.fused: Fused = found
        with pytest.MonkeyPatch.context() as patch:
            if name != "gated_delta":  # several blocks of columns
                patch.setattr(fuse, "TILE", 256)
            files = package_files(graph, target=load_target("h100"))
        for path, text in files.items():
            target = folder / name / path
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
        self.package: Any = imported(name, folder)
        self.kernels: ModuleType = imported(f"{name}.{module_file(self.module)}", folder)

    def model(self, dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        model = self.package.Model().to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # nothing is zero or one
                parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.dtype))
        return model

    def join(self, model: Any) -> None:
        for layer in model.layers:
            layer.mixer.join_products()

    @contextmanager
    def fused_mixers(self) -> Iterator[None]:
        """Calls of one token take the fused step, although there is no GPU."""
        taken = []

        def decodes(joined: Any, x: Tensor, place: Any) -> bool:
            taken.append(x.shape[1] == 1 and place.in_place and all(part.holds() for part in joined))
            return bool(taken[-1])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(imported(f"{self.package.__name__}.model"), "decodes", decodes)
            yield
        assert taken and all(taken)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    folder = tmp_path_factory.mktemp("decode_token")
    known: dict[str, Loaded] = {}

    def load(name: str) -> Loaded:
        if name not in known:
            known[name] = Loaded(name, folder)
        return known[name]

    return load


def logits(model: Any, tokens: Tensor, state: Any) -> list[Tensor]:
    return [model(tokens[:, t : t + 1], state=state) for t in range(tokens.shape[1])]


HALF = ("gated_delta_grouped", "channel_delta", "joint")
LATER = ("gated_delta_grouped", "own_delta", "channel_delta", "channel_delta_biased", "channel_decay_grouped")


@pytest.mark.parametrize(
    ("name", "dtype"),
    mostly_slow(
        [(n, torch.float32) for n in MIXERS] + [(n, torch.float16) for n in HALF],
        lambda case: case[1] == torch.float16 or case[0] not in LATER,
    ),
    ids=str,
)
@torch.no_grad()
def test_tokens_after_a_prefill(load: Callable[[str], Loaded], name: str, dtype: torch.dtype) -> None:
    """Logits and the whole state, beside the same steps in float64; and back to the torch form."""
    loaded = load(name)
    exact, plain, fused = (loaded.model(dtype) for _ in range(3))
    exact = exact.double()
    loaded.join(fused)
    tokens = torch.randint(64, (3, 9), generator=torch.Generator().manual_seed(1))
    states = {id(model): model.init_state(batch_size=3) for model in (exact, plain, fused)}
    found = {}
    for model in (exact, plain, fused):
        state = states[id(model)]
        model(tokens[:, :4], state=state)
        if model is fused:
            with loaded.fused_mixers():
                steps = logits(model, tokens[:, 4:7], state)
        else:
            steps = logits(model, tokens[:, 4:7], state)
        steps.append(model(tokens[:, 7:], state=state))
        found[id(model)] = {"logits": torch.cat(steps, 1), **state.memory}
    for key, value in found[id(exact)].items():
        if not value.numel():
            continue
        mine, theirs = found[id(fused)][key], found[id(plain)][key]
        assert mine.dtype == theirs.dtype and mine.isfinite().all()
        eps = torch.finfo(dtype).eps  # activations are rounded at every equation, here at every launch
        bound = 1.5 * float((theirs - value).abs().max()) + eps * max(float(value.abs().max()), 1.0)
        assert float((mine - value).abs().max()) <= bound, key


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_launches(load: Callable[[str], Loaded], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as promised: products and kernels, nothing else that computes."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from triton.runtime.interpreter import InterpretedFunction

    loaded = load(name)
    model = loaded.model(torch.float32)
    loaded.join(model)
    state = model.init_state(batch_size=2)
    model(torch.zeros(2, 3, dtype=torch.int64), state=state)
    launched: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            views = "view", "split", "slice", "transpose", "::t", "new_empty", "detach", "select", "alias"
            if not any(word in function.name() for word in (*views, "unbind", "_unsafe")):
                launched.append(function.name())
            return result

    original = InterpretedFunction.__getitem__

    def counted(self: Any, grid: Any) -> Any:
        launched.append(self.fn.__name__)
        return original(self, grid)

    monkeypatch.setattr(InterpretedFunction, "__getitem__", counted)
    mixer = model.layers[0].mixer
    place_of = imported(f"{name}.place")
    state_of = imported(f"{name}.state")
    place = state_of.open_place(place_of.dense_layout(torch.zeros(2, 1), state), state).at("layers.0.mixer")
    place = place_of.Place(place.layout, place.memory, "layers.0.mixer.", in_place=True)
    x = torch.randn(2, 1, 48)
    with Watch():
        loaded.kernels.decode_token(mixer, x, place)
    own_launches = [entry for entry in launched if "copy" not in entry and "_to_copy" not in entry]
    kernels = [entry for entry in own_launches if "kernel" in entry]
    products = [entry for entry in own_launches if "::mm" in entry or "::bmm" in entry or "::addmm" in entry]
    assert len(kernels) + len(products) == loaded.launches == loaded.fused.launches, own_launches


def test_weights_are_held_once(load: Callable[[str], Loaded]) -> None:
    loaded = load("gated_delta")
    model = loaded.model(torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loaded.join(model)
    mixer = model.layers[0].mixer
    joined = mixer.joined[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.is_contiguous()
    assert joined.weight.shape[0] % 16 == 0 and joined.holds()
    with torch.no_grad():
        mixer.v.weight.fill_(7.0)  # in place: the joined matrix changes with it
    assert joined.holds() and bool((joined.weight[: mixer.v.weight.shape[0]] == 7).all())
    model.to(torch.float64)
    assert not joined.holds()


@pytest.mark.parametrize("name", MIXERS)
def test_the_described_kernels_are_the_launched_ones(load: Callable[[str], Loaded], name: str) -> None:
    loaded = load(name)
    for kernel in token_kernels(loaded.graph):
        declared = getattr(loaded.kernels, kernel.name).arg_names
        assert set(declared) == {*kernel.signature, *kernel.constants}
        assert not set(kernel.signature) & set(kernel.constants) and set(kernel.aligned) <= set(
            kernel.signature
        )


def test_what_has_no_fused_step_says_why(tmp_path: Path) -> None:
    """A matrix between equations, several recurrences in one body, a normaliser: the torch form."""
    for mixer, reason in (
        ("rwkv7", "read values of this mixer"),
        ("gsa", "2 recurrences"),
        ("mlstm", "normalisers"),
        ("mamba", "stands between other operations"),
    ):
        source = {
            "archc": 1, "name": "other", "model": {"vocab_size": 64, "d_model": 128, "n_layers": 2, "context": 64},
            "blocks": {"main": {"mixer": {"use": mixer}, "mlp": {"use": "swiglu"}}},
        }  # fmt: skip
        if mixer in ("gsa", "mlstm"):
            source["blocks"]["main"]["mixer"]["n_heads"] = 2  # type: ignore[index]
        graph = graph_of(source)
        module = next(m for m in graph.modules.values() if m.body.kind == "mixer")
        assert fuse_decode(module) is None and reason in why_not(module), why_not(module)


def replaced(model: Any, change: str) -> None:
    """Change what `v` multiplies with, as users do."""
    mixer = model.layers[0].mixer
    new = torch.full_like(mixer.v.weight, 0.01)
    if change == "parameter":
        mixer.v.weight = torch.nn.Parameter(new)
    elif change == "data":
        mixer.v.weight.data = new
    elif change == "assigned state":
        model.load_state_dict({**model.state_dict(), "layers.0.mixer.v.weight": new}, assign=True)
    else:
        mixer.v = torch.nn.Linear(*reversed(new.shape), bias=False)
        mixer.v.weight.data.copy_(new)


@pytest.mark.parametrize("change", ["parameter", "data", "assigned state", "module"])
@torch.no_grad()
def test_a_replaced_weight_is_refused_until_joined_again(load: Callable[[str], Loaded], change: str) -> None:
    """The fused step never reads what was there before: it gives way to the torch form, and comes back."""
    loaded = load("gated_delta")
    model = loaded.model(torch.float32)
    loaded.join(model)
    mixer = model.layers[0].mixer
    assert all(joined.holds() for joined in mixer.joined)
    replaced(model, change)
    assert not all(joined.holds() for joined in mixer.joined)
    loaded.join(model)
    assert all(joined.holds() for joined in mixer.joined)
    rows = mixer.joined[0].weight.split(mixer.joined[0].rows)
    assert any(torch.equal(part, mixer.v.weight) for part in rows) and bool((mixer.v.weight == 0.01).all())
