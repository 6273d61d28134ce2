"""The operations that a bench compares: each as a spec of our own and as a call of a peer, on the same raw inputs.

Raw means what linear maps give: gate, beta and the norms of q and k are computed inside the timed region on both
sides, by the peer in its kernels where it can. Our side is the emitted module of a mixer whose linear maps hand out
tensors that were made beforehand, so that it runs whatever the compiler makes of the equations between them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PEERS = "fla.ops"
A_LOG, DT_BIAS = 0.5, -4.0  # of all heads: decays of about -0.03 a token


@dataclass(frozen=True, slots=True)
class Shape:
    """B rows, T tokens, H heads, D channels of keys and of values."""

    B: int
    T: int
    H: int
    D: int

    def __str__(self) -> str:
        return f"B {self.B}, T {self.T}, H {self.H}, D {self.D}"


@dataclass(frozen=True, slots=True)
class Timed:
    """One class of recurrence with what is computed around it.

    equations: of a mixer whose linear maps are called q, k, v, beta and decay. given: axes of each raw input behind
    batch and tokens. decay, erase: its class. chunk, recurrent: the peer's functions by name, over chunks and token
    by token; arguments: what they are called with besides q, k, v and the state.
    """

    name: str
    equations: Mapping[str, str]
    given: Mapping[str, str]
    decay: str
    erase: str
    chunk: str
    recurrent: str
    arguments: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]


_PLAIN = {"q": "linear(x, [n_heads, k_dim])", "k": "linear(x, [n_heads, k_dim])"}
_NORMED = {name: f"l2norm({text}, eps=1e-6)" for name, text in _PLAIN.items()}
_V = {"v": "linear(x, [n_heads, v_dim])"}
_DELTA = {"o": "recurrence(q, k, v, decay=decay, beta=beta, scale=auto)"}
_WRITE = {"o": "recurrence(q, k, v, decay=decay, scale=auto)"}
_BETA = {"beta": "sigmoid(linear(x, [n_heads]))"}


def _softplus(axes: str) -> dict[str, str]:
    step = f"softplus(linear(x, {axes}) + param(dt_bias, {axes}, init={DT_BIAS}))"
    return {"decay": f"-exp(param(A_log, [n_heads], init={A_LOG})) * {step}"}


def _sigmoid_gate(name: str) -> Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]:
    def arguments(raw: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        from torch.nn.functional import logsigmoid

        return {name: logsigmoid(raw["decay"].float()) / 16}

    return arguments


def _all_inside(raw: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Everything in the peer's kernels."""
    inside = ("use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel")
    gate = {"g": raw["decay"], "A_log": raw["A_log"], "dt_bias": raw["dt_bias"].flatten()}
    return {"beta": raw["beta"], **gate, **dict.fromkeys(inside, True)}


TIMED = (
    Timed(
        "gated delta",
        {**_NORMED, **_V, **_BETA, **_softplus("[n_heads]"), **_DELTA},
        {"q": "HD", "k": "HD", "v": "HD", "beta": "H", "decay": "H"},
        "head",
        "delta",
        "chunk_gated_delta_rule",
        "fused_recurrent_gated_delta_rule",
        _all_inside,
    ),
    Timed(
        "scalar decay",
        {**_PLAIN, **_V, "decay": "logsigmoid(linear(x, [n_heads])) / 16", **_WRITE},
        {"q": "HD", "k": "HD", "v": "HD", "decay": "H"},
        "head",
        "none",
        "chunk_simple_gla",
        "fused_recurrent_simple_gla",
        _sigmoid_gate("g"),
    ),
    Timed(
        "gated delta, decay per channel",
        {**_NORMED, **_V, **_BETA, **_softplus("[n_heads, k_dim]"), **_DELTA},
        {"q": "HD", "k": "HD", "v": "HD", "beta": "H", "decay": "HD"},
        "key",
        "delta",
        "chunk_kda",
        "fused_recurrent_kda",
        _all_inside,
    ),
    Timed(
        "decay per channel",
        {**_PLAIN, **_V, "decay": "logsigmoid(linear(x, [n_heads, k_dim])) / 16", **_WRITE},
        {"q": "HD", "k": "HD", "v": "HD", "decay": "HD"},
        "key",
        "none",
        "chunk_gla",
        "fused_recurrent_gla",
        _sigmoid_gate("g"),
    ),
)  # fmt: skip


def spec_of(timed: Timed, heads: int, width: int) -> dict[str, object]:
    """A model of one layer that holds the operation and no more."""
    params = {"n_heads": heads, "k_dim": width, "v_dim": width}
    body = {**timed.equations, "y": "linear(o, d_model)"}
    return {
        "archc": 1,
        "name": f"{timed.name.replace(',', '').replace(' ', '_')}_{heads}_{width}",
        "model": {"vocab_size": 16, "d_model": 16, "n_layers": 1, "context": 64, "norm": "rmsnorm"},
        "mixers": {"timed": {"params": params, "body": body}},
        "mlps": {"nothing": {"body": {"y": "x"}}},
        "blocks": {"main": {"mixer": {"use": "timed"}, "mlp": {"use": "nothing"}}},
        "layers": ["1 main"],
    }


def raw_inputs(
    timed: Timed, shape: Shape, device: torch.device, dtype: torch.dtype, copies: int
) -> list[dict[str, torch.Tensor]]:
    """As many sets of raw inputs; `A_log` and `dt_bias` in float32."""
    import torch

    sizes = {"H": shape.H, "D": shape.D}
    found = []
    for _ in range(copies):
        raw = {
            name: torch.randn(shape.B, shape.T, *(sizes[axis] for axis in axes), device=device, dtype=dtype)
            for name, axes in timed.given.items()
        }
        if "beta" in timed.given:
            axes = timed.given["decay"]
            raw["A_log"] = torch.full((shape.H,), A_LOG, device=device)
            raw["dt_bias"] = torch.full(tuple(sizes[axis] for axis in axes), DT_BIAS, device=device)
        found.append(raw)
    return found


class OurSide:
    """The emitted mixer of a package, with linear maps that hand out what `given` holds."""

    def __init__(self, package: str, device: torch.device) -> None:
        import torch

        built = importlib.import_module(package)
        self.place: Any = importlib.import_module(f"{package}.place")
        self.given: Mapping[str, torch.Tensor] = {}
        self.mixer: Any = built.Model(device=device).layers[0].mixer
        side = self

        class Given(torch.nn.Module):
            """Stands where a linear map stood."""

            def __init__(self, name: str) -> None:
                super().__init__()
                self.name = name

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                """What was made beforehand, heads and channels in one axis as a linear map gives them."""
                return side.given[self.name].flatten(2)

        for name, part in list(self.mixer.named_children()):
            if isinstance(part, torch.nn.Linear):
                setattr(self.mixer, name, torch.nn.Identity() if name == "y" else Given(name))

    def __call__(self, given: Mapping[str, torch.Tensor], state: torch.Tensor | None = None) -> torch.Tensor:
        """Outputs `[B, T, H * D]`; a state is updated in place."""
        self.given = given
        x = given["q"][:, :, 0, :1]  # only its batch and tokens count
        memory = None if state is None else {"o": state}
        place = self.place.Place(self.place.dense_layout(x), memory, in_place=state is not None)
        found: torch.Tensor = self.mixer(x, place)
        return found

    def leaves(self, given: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """What gradients are taken for."""
        import torch

        raw = [x for name, x in given.items() if name not in ("A_log", "dt_bias")]
        return [*raw, *(p for p in self.mixer.parameters() if isinstance(p, torch.nn.Parameter))]


class PeerSide:
    """The same with the peer's functions. Raises ImportError, AttributeError where it does not have them."""

    def __init__(self, timed: Timed, recurrent: bool = False) -> None:
        self.timed = timed
        self.function = getattr(importlib.import_module(PEERS), timed.recurrent if recurrent else timed.chunk)
        self.recurrent = recurrent

    def __call__(
        self, given: Mapping[str, torch.Tensor], state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs `[B, T, H, D]` and, where one was given, the next state."""
        arguments = self.timed.arguments(given)
        if self.recurrent and self.timed.decay == "key" and self.timed.erase == "none":
            arguments["gk"] = arguments.pop("g")
        held = {"initial_state": state, "output_final_state": True} if state is not None else {}
        o, after = self.function(given["q"], given["k"], given["v"], **arguments, **held)
        return o, after

    def leaves(self, given: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """What gradients are taken for."""
        return list(given.values())
