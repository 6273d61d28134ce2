"""Whole models and layers in a bench: ours as built, and peers of the same sizes with weights of their own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROMPT = 128  # tokens in the state before decoding starts
PEERS = ("fla", "transformers")


def training_step(model: Any, loss: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], None]:
    """Loss, backward and AdamW on one batch of tokens `[B, T]`."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(tokens: torch.Tensor) -> None:
        loss(tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_decoding(model: Any, tokens: torch.Tensor, room: int) -> Callable[[], object]:
    """A step that decodes one token for each row, after a prompt `[B, PROMPT]`; `room` steps fit."""
    import torch

    with torch.inference_mode():
        state = model.init_state(batch_size=tokens.shape[0], max_length=tokens.shape[1] + room)
        model(tokens, state=state)
    token = tokens[:, :1].contiguous()

    def step() -> object:
        with torch.inference_mode():
            return model(token, state=state)

    return step


def peer_decoding(model: Any, tokens: torch.Tensor) -> Callable[[], object]:
    """The same for a model with the interface of transformers."""
    import torch

    with torch.inference_mode():
        cache = model(tokens, use_cache=True).past_key_values
    token = tokens[:, :1].contiguous()

    def step() -> object:
        nonlocal cache
        with torch.inference_mode():
            found = model(token, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        return found

    return step


def peer_model(name: str, ours: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A peer of our model's sizes: the same layers ("fla"), or softmax attention in all of them ("transformers").

    Raises ImportError where the package is missing, AttributeError where our model's layers are not of the kind that
    the peer has.
    """
    import torch

    config, first = ours.config, ours.layers[0]
    # torch's Module raises AttributeError for what a layer does not have.
    if name == "fla":
        models: Any = importlib.import_module("fla.models")
        others = [n for n, layer in enumerate(ours.layers) if type(layer) is not type(first)]
        attention = None
        if others:
            mixer = ours.layers[others[0]].mixer
            softmax: Any = importlib.import_module("fla.layers.attn")
            softmax.flash_attn_func = softmax.flash_attn_func or causal_attention
            attention = {
                "layers": others,
                "num_heads": mixer.n_heads,
                "num_kv_heads": mixer.n_kv_heads,
                "rope_theta": getattr(mixer, "rope_theta", 10000.0),
                "window_size": getattr(mixer, "window", None),
            }
        wanted = models.GatedDeltaNetConfig(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            intermediate_size=first.mlp.d_ff,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            attn=attention,
            **_layer_sizes(first.mixer),
        )
        kind = models.GatedDeltaNetForCausalLM
    else:
        transformers: Any = importlib.import_module("transformers")
        heads = max(config.d_model // 64, 1)
        wanted = transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=first.mlp.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
        kind = transformers.LlamaForCausalLM
    with torch.device(device):  # a billion weights are drawn faster there
        found = kind(wanted)
    return found.to(device=device, dtype=dtype)


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, window_size: tuple[int, int]
) -> torch.Tensor:
    """`flash_attn_func` of `q [B, T, H, D]` by torch's attention, for fla's softmax layers without flash-attn.

    Of whole sequences, or of one token with all before it. Raises ValueError for anything else.
    """
    import torch

    if not causal or window_size != (-1, -1) or q.shape[1] not in (1, k.shape[1]):
        raise ValueError("softmax attention like this needs flash-attn")
    whole = q.shape[1] > 1
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=whole, enable_gqa=True)
    return o.transpose(1, 2)


def peer_layer(ours: Any, d_model: int, device: torch.device, dtype: torch.dtype) -> Any:
    """The peer's layer of the sizes of our mixer. Raises ImportError, AttributeError like `peer_model`."""
    import torch

    layers: Any = importlib.import_module("fla.layers")
    with torch.device(device):
        found = layers.GatedDeltaNet(hidden_size=d_model, layer_idx=0, **_layer_sizes(ours))
    return found.to(device=device, dtype=dtype)


def _layer_sizes(mixer: Any) -> dict[str, Any]:
    """What the peer calls the numbers of a mixer with a delta rule and a gate."""
    for part in ("beta", "decay", "gate"):
        getattr(mixer, part)
    return {
        "num_heads": mixer.n_heads,
        "num_v_heads": mixer.n_v_heads,
        "head_dim": mixer.head_dim,
        "expand_v": mixer.v_dim / mixer.head_dim,
        "conv_size": mixer.conv,
    }
