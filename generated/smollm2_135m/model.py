"""smollm2_135m: SmolLM2-135M.

Allal et al. 2025, arXiv 2502.02737

134,515,008 parameters, 268,959,744 FLOPs a token in matrices.
Memory of a sequence, activations in 2 bytes: 23,040 bytes of cache a token.

Axes: B batch, T tokens, D d_model, F d_ff, G n_kv_heads, H n_heads, K head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attention
from .config import Config
from .language_model import LanguageModel
from .norm_modules import RMSNorm
from .place import Place
from .rope import rope
from .state import Entry


class Attention(nn.Module):
    """Softmax attention.

    Vaswani et al. 2017, arXiv 1706.03762; grouped heads: Ainslie et al. 2023, arXiv 2305.13245

    q: linear(x, [n_heads, head_dim], bias=qkv_bias)
    k: linear(x, [n_kv_heads, head_dim], bias=qkv_bias)
    v: linear(x, [n_kv_heads, head_dim], bias=qkv_bias)
    q_turned: rope(q_normed, rope.theta, fraction, scaling=rope.scaling)
    k_turned: rope(k_normed, rope.theta, fraction, scaling=rope.scaling)
    o: attention(q_turned, k_turned, v, mask=true, score=s)
    y: linear(gated, d_model, bias=output_bias)
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.attention_n_heads
        self.head_dim = config.attention_head_dim
        self.n_kv_heads = config.attention_n_kv_heads
        self.rope_theta = config.attention_rope_theta
        self.d_model = config.d_model
        self.q = nn.Linear(self.d_model, self.n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(self.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(self.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.y = nn.Linear(self.n_heads * self.head_dim, self.d_model, bias=False)

    def state_entries(self) -> dict[str, Entry]:
        """The memory of one sequence."""
        return {
            "k_turned": Entry((self.n_kv_heads, self.head_dim), grows=True),
            "v": Entry((self.n_kv_heads, self.head_dim), grows=True),
        }

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        q_BTHK = self.q(x_BTD).unflatten(-1, (self.n_heads, self.head_dim))
        k_BTGK = self.k(x_BTD).unflatten(-1, (self.n_kv_heads, self.head_dim))
        v_BTGK = self.v(x_BTD).unflatten(-1, (self.n_kv_heads, self.head_dim))
        q_turned_BTHK = rope(q_BTHK, place, self.rope_theta)
        k_turned_BTGK = rope(k_BTGK, place, self.rope_theta)
        o_BTHK = attention(
            q_turned_BTHK,
            k_turned_BTGK,
            v_BTGK,
            scale=self.head_dim**-0.5,
            place=place,
            keys="k_turned",
            values="v",
        )
        y_BTD: Tensor = self.y(o_BTHK.flatten(-2))
        if place.patterns:
            place.keep_all(locals())
        return y_BTD


class Swiglu(nn.Module):
    """Gated linear unit with SiLU.

    Shazeer 2020, arXiv 2002.05202

    gate: linear(x, d_ff, bias=bias)
    up: linear(x, d_ff, bias=bias)
    y: linear(silu(gate) * up, d_model, bias=bias)
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.d_ff = config.swiglu_d_ff
        self.gate = nn.Linear(self.d_model, self.d_ff, bias=False)
        self.up = nn.Linear(self.d_model, self.d_ff, bias=False)
        self.y = nn.Linear(self.d_ff, self.d_model, bias=False)

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        gate_BTF = self.gate(x_BTD)
        up_BTF = self.up(x_BTD)
        y_BTD: Tensor = self.y(F.silu(gate_BTF) * up_BTF)
        if place.patterns:
            place.keep_all(locals())
        return y_BTD


class FullBlock(nn.Module):
    """Pre-norm residual block.

    Xiong et al. 2020, arXiv 2002.04745

    h: x + mixer(norm(x))
    y: h + mlp(norm(h))
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.h_norm = RMSNorm((self.d_model,), eps=1e-05)
        self.y_norm = RMSNorm((self.d_model,), eps=1e-05)
        self.mixer = Attention(config)
        self.mlp = Swiglu(config)

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        h_BTD = x_BTD + self.mixer(self.h_norm(x_BTD), place.at("mixer"))
        y_BTD: Tensor = h_BTD + self.mlp(self.y_norm(h_BTD), place.at("mlp"))
        if place.patterns:
            place.keep_all(locals())
        return y_BTD


class Model(LanguageModel):
    """smollm2_135m: FullBlock in every layer."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        config = config or Config()
        self.config = config
        with torch.device(device or torch.get_default_device()):
            self.embedding = nn.Embedding(config.vocab_size, config.d_model)
            self.layers = nn.ModuleList(block(config) for block in layer_classes(config.n_layers))
            self.norm = RMSNorm((config.d_model,), eps=1e-05)
        if self.embedding.weight.device.type != "meta":
            self.init_weights()
        if dtype is not None:
            self.to(dtype)

    def head_weight(self) -> Tensor:
        """The matrix that gives the logits: the embedding's own."""
        return self.embedding.weight

    def context(self) -> int:
        """The length that the model was made for."""
        return self.config.context


def layer_classes(n_layers: int) -> list[type[nn.Module]]:
    """The class of each layer: FullBlock in every layer."""
    return [FullBlock] * n_layers
