"""The models that the laws are held against: the library's small ones, hybrids, and the algebra's other corners."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.laws.ways import STATEFUL, WAYS
from tests.oracles.row import rows
from tests.oracles.row import spec as spec_of
from tests.support.packages import SPECS, small_spec
from tests.support.shrunk import shrunk

Spec = Mapping[str, Any]

# The published small specs, narrower and shallower: the equations are theirs, a law costs a fraction of a second.
SHIPPED: dict[str, Path] = {path.stem: path for path in sorted((SPECS / "models").glob("*_small.yaml"))}
SHRUNK: dict[str, Spec] = {
    name: small_spec(name, vocab_size=64, d_model=96, n_layers=2, context=160) for name in SHIPPED
}

_SIZES = {"vocab_size": 64, "d_model": 48, "context": 160, "norm": "rmsnorm"}
_MLP = {"use": "swiglu", "d_ff": 64}
_DELTA = {"use": "gated_deltanet", "n_heads": 2, "head_dim": 16, "expand_v": 1}


def _attention(**options: object) -> dict[str, object]:
    return {"use": "attention", "n_heads": 4, "n_kv_heads": 2, "rope": {"theta": 10000}, **options}


def one_mixer(name: str, mixer: Spec, n_layers: int = 2) -> Spec:
    """A model whose every layer has this mixer."""
    return {
        "archc": 1,
        "name": name,
        "model": {**_SIZES, "n_layers": n_layers},
        "blocks": {"main": {"mixer": dict(mixer), "mlp": _MLP}},
        "layers": ["1 main"],
    }


HYBRIDS: dict[str, Spec] = {
    # Three linear layers to one of attention; the window is shorter than most test sequences, so rings wrap.
    "windowed_hybrid": {
        "archc": 1,
        "name": "windowed_hybrid",
        "model": {**_SIZES, "n_layers": 5, "tie_embeddings": True},
        "blocks": {
            "linear": {"mixer": _DELTA, "mlp": _MLP},
            "local": {"mixer": _attention(window=7, output_gate="head"), "mlp": _MLP},
            "full": {"mixer": _attention(qk_norm="head"), "mlp": _MLP},
        },
        "layers": ["3 linear", "1 local", "1 full"],
    },
    "grouped_queries": one_mixer("grouped_queries", {"use": "gla", "n_heads": 4, "n_kv_heads": 2}),
    "two_mixers": {
        "archc": 1,
        "name": "two_mixers",
        "model": {**_SIZES, "n_layers": 2},
        "blocks": {
            "main": {
                "use": "two_mixers",
                "second_scale": 0.5,
                "first_mixer": {"use": "mamba2", "head_dim": 16, "d_state": 16},
                "second_mixer": _attention(softcap=5),
                "mlp": _MLP,
            },
        },
        "layers": ["1 main"],
    },
    # Shared transformer blocks with adapters of their sites, and the embedding beside the residual stream.
    "shared_memory": shrunk(
        "zamba2_2_7b",
        3,
        {
            "model.context": 160,
            "shared.*.n_heads": 4,
            "shared.A.rank": 6,
            "shared.B.rank": 6,
            "blocks.*.mixer.d_state": 8,
            "blocks.mamba.mixer.head_dim": 16,
            "blocks.hybrid.mixer.head_dim": 16,
        },
        {"default": "hybrid", "mamba": [1]},
    ),
    # One cache that two layers read.
    "one_cache": shrunk(
        "yoco_1b",
        3,
        {
            "model.context": 160,
            "blocks.*.mixer.n_heads": 4,
            "blocks.cross.mixer.n_kv_heads": 2,
            "blocks.retention.mlp.d_ff": 64,
            "blocks.cross.mlp.d_ff": 64,
        },
        {"default": "retention", "cross": ["1-2"]},
    ),
    # Keys shared in a window, after a layer of full attention; a state for each channel beside them.
    "shared_keys": shrunk(
        "hymba_1_5b",
        3,
        {
            "model.context": 160,
            "blocks.*.mixer.n_heads": 4,
            "blocks.*.mixer.n_kv_heads": 2,
            "blocks.*.mixer.window": 7,
            "blocks.*.mlp.d_ff": 64,
        },
        {"default": "local", "full": [0], "sharing": [2]},
    ),
    # Experts, and residuals that are taken after the norm.
    "experts": shrunk(
        "minimax_01",
        2,
        {
            "model.context": 160,
            "blocks.*.mixer.n_heads": 4,
            "blocks.*.mixer.head_dim": 16,
            "blocks.full.mixer.n_kv_heads": 2,
            "blocks.*.mlp.n_experts": 4,
            "blocks.*.mlp.expert.d_ff": 32,
        },
        ["1 linear", "1 full"],
    ),
}

_HEADS = {"n_heads": {"type": "int", "default": 3}, "head_dim": {"type": "int", "default": 16}}
_PROJECTIONS = dict.fromkeys(("q", "k", "v"), "linear(x, [n_heads, head_dim])")

# Mixers of nobody: each takes a corner of the recurrence's algebra that no file of the library reaches.
CORNERS: dict[str, Spec] = {
    "plain_linear": {**_PROJECTIONS, "o": "recurrence(q, k, v, scale=auto)"},
    "constant_decay": {
        **_PROJECTIONS,
        "o": "recurrence(q, k, v, decay=-softplus(param(rate, [n_heads], init=-1)), scale=auto)",
    },
    "value_decay": {
        **_PROJECTIONS,
        "decay": "logsigmoid(linear(x, [n_heads, head_dim]))",
        "o": "recurrence(q, k, v, decay_v=decay, scale=auto)",
    },
    "undecayed_delta": {
        **_PROJECTIONS,
        "key": "l2norm(k)",
        "beta": "sigmoid(linear(x, [n_heads]))",
        "o": "recurrence(q, key, v, beta=beta, scale=auto)",
    },
    "several_factors": {
        "q": "linear(x, [n_heads, head_dim])",
        "k": "linear(x, [n_factors, n_heads, head_dim]) | l2norm",
        "v": "linear(x, [n_factors, n_heads, head_dim])",
        "beta": "2 * sigmoid(linear(x, [n_factors, n_heads]))",
        "decay": "logsigmoid(linear(x, [n_heads]))",
        "o": "recurrence(q, k, v, decay=decay, beta=beta, factors=n_factors, scale=auto)",
    },
    "summed_normaliser": {
        **_PROJECTIONS,
        "o": "recurrence(softmax(q), softmax(k), v, normalize=sum, scale=1, eps=1e-6)",
    },
    "max_normaliser": {
        **_PROJECTIONS,
        "decay": "logsigmoid(linear(x, [n_heads]))",
        "write": "linear(x, [n_heads])",
        "o": "recurrence(q, k, v, decay=decay, log_input=write, normalize=max, scale=auto, eps=1e-6)",
    },
    "convolved": {
        "u": "silu(conv1d(linear(x, [n_heads, head_dim]), 3))",
        "past": "shift(x)",
        "o": "u * sigmoid(linear(past, [n_heads, head_dim]))",
    },
    "bidirectional": {**_PROJECTIONS, "o": "attention(q, k, v, causal=false)"},
}


def corner(name: str) -> Spec:
    """The model of one corner of the algebra."""
    body = {**CORNERS[name], "y": "linear(o, d_model, name=out)"}
    params = dict(_HEADS)
    if "n_factors" in str(body):
        params["n_factors"] = {"type": "int", "default": 2}
    spec = dict(one_mixer(name, {"use": "own"}))
    spec["mixers"] = {"own": {"params": params, "body": body}}
    return spec


SUBJECTS: dict[str, Spec] = {**SHRUNK, **HYBRIDS, **{name: corner(name) for name in CORNERS}}

# Every mixer of the library, by its first row; and all of them together.
LIBRARY: dict[str, Spec] = {
    mixer: spec_of(mixer, next(iter(found.values()))) for mixer, found in rows().items()
}
# Mixers that between them reach every operation with a history; the fast suite holds their laws.
CORE = ("attention", "gla", "mamba2", "gated_deltanet", "kda", "rwkv7", "mamba", "lru", "s4d", "slstm")
EVERY: dict[str, Spec] = {**SUBJECTS, **LIBRARY}

_SEES_THE_FUTURE = "attention that is not causal reads tokens that a later call would bring"

# Laws beside the ways of asking for logits: each is a test of its own.
OTHER_LAWS = (
    "paper",
    "gradients",
    *(f"gradients of {way}" for way in ("alone", "decode", "decode_chunk")),
    "lengths around chunks",
    "rows of a batch",
    "a thousand tokens",
    "twelve lengths",
    "parameters",
    "bytes of states",
    "FLOPs of matrices",
)

# Laws that cannot hold, and why.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "bidirectional": dict.fromkeys(
        ("batch", *STATEFUL, "lengths around chunks", "twelve lengths"), _SEES_THE_FUTURE
    ),
} | {
    mixer: dict(row.exceptions)
    for mixer, found in rows().items()
    if (row := next(iter(found.values()))).exceptions
}


def others_of(subject: str) -> list[str]:
    """The laws beside the ways that must hold for this subject."""
    return [name for name in OTHER_LAWS if name not in EXCEPTIONS.get(subject, {})]


def laws_of(subject: str) -> list[str]:
    """The names of the ways that must agree for this subject."""
    return [name for name in WAYS if name not in EXCEPTIONS.get(subject, {})]
