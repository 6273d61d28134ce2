"""slot_hybrid: Gated slot attention and full attention, 3:1.

Zhang et al. 2024, arXiv 2409.07146

783,872 parameters, 1,564,672 FLOPs a token in matrices.
Memory of a sequence, activations in 2 bytes: 24,576 bytes of state, 256 bytes of cache a token.

Axes: B batch, T tokens, D d_model, F d_ff, G n_kv_heads, H n_heads, K head_dim, N n_slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attention
from .config import Config
from .initial import normal
from .key_decay_grouped import key_decay_grouped
from .language_model import LanguageModel
from .norm_modules import RMSNorm
from .place import Place
from .precision import wide
from .rope import rope
from .state import Entry
from .value_decay_grouped import value_decay_grouped


class GatedSlotAttention(nn.Module):
    """Gated slot attention.

    Zhang et al. 2024, arXiv 2409.07146

    q: silu(linear(x, [n_heads, head_dim]))
    k: silu(linear(x, [n_kv_heads, head_dim]))
    v: silu(linear(x, [n_kv_heads, head_dim]))
    log_alpha: logsigmoid(linear(x, [n_kv_heads, n_slots])) / tau
    write: 1 - exp(log_alpha)
    scores: recurrence(q, k, write, decay_v=log_alpha, scale=1)
    p: softmax(scores)
    o: recurrence(p, write, v, decay=log_alpha, scale=1)
    y: linear(rmsnorm(silu(o), over=[n_heads, head_dim]), d_model)
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.gated_slot_attention_n_heads
        self.head_dim = config.gated_slot_attention_head_dim
        self.n_kv_heads = config.gated_slot_attention_n_kv_heads
        self.n_slots = config.gated_slot_attention_n_slots
        self.tau = config.gated_slot_attention_tau
        self.d_model = config.d_model
        self.q = nn.Linear(self.d_model, self.n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(self.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(self.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.log_alpha = nn.Linear(self.d_model, self.n_kv_heads * self.n_slots, bias=False)
        self.y_norm = RMSNorm((self.n_heads, self.head_dim), eps=1e-05, dims=2)
        self.y = nn.Linear(self.n_heads * self.head_dim, self.d_model, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights whose equations say how they start."""
        self.q.weight.copy_(normal(self.q.weight, 0, 0.02))
        self.k.weight.copy_(normal(self.k.weight, 0, 0.02))
        self.v.weight.copy_(normal(self.v.weight, 0, 0.02))
        self.log_alpha.weight.copy_(normal(self.log_alpha.weight, 0, 0.02))
        self.y.weight.copy_(normal(self.y.weight, 0, 0.02))

    def state_entries(self) -> dict[str, Entry]:
        """The memory of one sequence."""
        return {
            "scores": Entry((self.n_kv_heads, self.head_dim, self.n_slots), dtype=torch.float32),
            "o": Entry((self.n_kv_heads, self.n_slots, self.head_dim), dtype=torch.float32),
        }

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        q_BTHK = F.silu(self.q(x_BTD).unflatten(-1, (self.n_heads, self.head_dim)))
        k_BTGK = F.silu(self.k(x_BTD).unflatten(-1, (self.n_kv_heads, self.head_dim)))
        v_BTGK = F.silu(self.v(x_BTD).unflatten(-1, (self.n_kv_heads, self.head_dim)))
        log_alpha_BTGN = (
            F.logsigmoid(wide(self.log_alpha(x_BTD).unflatten(-1, (self.n_kv_heads, self.n_slots))))
            / self.tau
        )
        write_BTGN = -torch.expm1(log_alpha_BTGN)
        scores_BTHN = value_decay_grouped(
            q_BTHK, k_BTGK, write_BTGN, log_alpha_BTGN, scale=1, place=place, key="scores"
        )
        p_BTHN = scores_BTHN.softmax(-1)
        o_BTHK = key_decay_grouped(p_BTHN, write_BTGN, v_BTGK, log_alpha_BTGN, scale=1, place=place, key="o")
        y_BTD: Tensor = self.y(self.y_norm(F.silu(o_BTHK)).flatten(-2))
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

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights whose equations say how they start."""
        self.gate.weight.copy_(normal(self.gate.weight, 0, 0.02))
        self.up.weight.copy_(normal(self.up.weight, 0, 0.02))
        self.y.weight.copy_(normal(self.y.weight, 0, 0.02))

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        gate_BTF = self.gate(x_BTD)
        up_BTF = self.up(x_BTD)
        y_BTD: Tensor = self.y(F.silu(gate_BTF) * up_BTF)
        if place.patterns:
            place.keep_all(locals())
        return y_BTD


class SlotBlock(nn.Module):
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
        self.mixer = GatedSlotAttention(config)
        self.mlp = Swiglu(config)

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        h_BTD = x_BTD + self.mixer(self.h_norm(x_BTD), place.at("mixer"))
        y_BTD: Tensor = h_BTD + self.mlp(self.y_norm(h_BTD), place.at("mlp"))
        if place.patterns:
            place.keep_all(locals())
        return y_BTD


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

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights whose equations say how they start."""
        self.q.weight.copy_(normal(self.q.weight, 0, 0.02))
        self.k.weight.copy_(normal(self.k.weight, 0, 0.02))
        self.v.weight.copy_(normal(self.v.weight, 0, 0.02))
        self.y.weight.copy_(normal(self.y.weight, 0, 0.02))

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
    """slot_hybrid: 3 SlotBlock, 1 FullBlock in turn."""

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
    """The class of each layer: 3 SlotBlock, 1 FullBlock in turn."""
    cycle: list[type[nn.Module]] = [SlotBlock] * 3 + [FullBlock]
    return [cycle[layer % len(cycle)] for layer in range(n_layers)]
