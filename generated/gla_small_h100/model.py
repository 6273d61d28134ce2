"""gla_small: Gated linear attention, for tests and first steps.

1,839,424 parameters, 3,674,112 FLOPs a token in matrices.
Memory of a sequence, activations in 2 bytes: 98,304 bytes of state.

Axes: B batch, T tokens, A gate_rank, D d_model, F d_ff, G n_kv_heads, H n_heads, K head_dim, V v_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Config
from .fused_glu import gated
from .fused_norms import RMSNorm
from .gates import gla_decay
from .initial import normal
from .joined import Joined, decodes, join
from .key_decay_grouped import key_decay_grouped
from .language_model import LanguageModel
from .place import Place
from .state import Entry


class Gla(nn.Module):
    """Gated linear attention.

    Yang et al. 2023, arXiv 2312.06635

    q: linear(x, [n_heads, head_dim])
    k: linear(x, [n_kv_heads, head_dim])
    v: linear(x, [n_kv_heads, v_dim])
    low: linear(x, gate_rank)
    decay: logsigmoid(linear(low, [n_kv_heads, head_dim], bias=true)) / tau
    o: recurrence(q, k, v, decay=decay, scale=auto)
    gate: silu(linear(x, [n_heads, v_dim]))
    y: linear(rmsnorm(o) * gate, d_model)
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.gla_n_heads
        self.head_dim = config.gla_head_dim
        self.n_kv_heads = config.gla_n_kv_heads
        self.v_dim = config.gla_v_dim
        self.tau = config.gla_tau
        self.d_model = config.d_model
        self.gate_rank = config.gla_gate_rank
        self.q = nn.Linear(self.d_model, self.n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(self.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(self.d_model, self.n_kv_heads * self.v_dim, bias=False)
        self.low = nn.Linear(self.d_model, self.gate_rank, bias=False)
        self.decay = nn.Linear(self.gate_rank, self.n_kv_heads * self.head_dim, bias=True)
        self.gate = nn.Linear(self.d_model, self.n_heads * self.v_dim, bias=False)
        self.y_norm = RMSNorm((self.v_dim,), eps=1e-05)
        self.y = nn.Linear(self.n_heads * self.v_dim, self.d_model, bias=False)
        self.joined: list[Joined] = []

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights whose equations say how they start."""
        self.q.weight.copy_(normal(self.q.weight, 0, 0.02))
        self.k.weight.copy_(normal(self.k.weight, 0, 0.02))
        self.v.weight.copy_(normal(self.v.weight, 0, 0.02))
        self.low.weight.copy_(normal(self.low.weight, 0, 0.02))
        self.decay.weight.copy_(normal(self.decay.weight, 0, 0.02))
        self.gate.weight.copy_(normal(self.gate.weight, 0, 0.02))
        self.y.weight.copy_(normal(self.y.weight, 0, 0.02))

    def state_entries(self) -> dict[str, Entry]:
        """The memory of one sequence."""
        return {
            "o": Entry((self.n_kv_heads, self.head_dim, self.v_dim), dtype=torch.float32),
        }

    def join_products(self) -> None:
        """Let the matrices that read one value lie in one, which decoding on a GPU reads in one launch."""
        self.joined = join(
            self,
            [
                ["v", "gate", "q", "k", "low"],
            ],
        )

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        if self.joined and decodes(self.joined, x_BTD, place):
            from .gla_token_kernels import decode_token

            return decode_token(self, x_BTD, place)
        q_BTHK = self.q(x_BTD).unflatten(-1, (self.n_heads, self.head_dim))
        k_BTGK = self.k(x_BTD).unflatten(-1, (self.n_kv_heads, self.head_dim))
        v_BTGV = self.v(x_BTD).unflatten(-1, (self.n_kv_heads, self.v_dim))
        low_BTA = self.low(x_BTD)
        decay_BTGK = gla_decay(self.decay(low_BTA).unflatten(-1, (self.n_kv_heads, self.head_dim)), self.tau)
        o_BTHV = key_decay_grouped(
            q_BTHK, k_BTGK, v_BTGV, decay_BTGK, scale=self.head_dim**-0.5, place=place, key="o"
        )
        gate_linear_BTHV = self.gate(x_BTD).unflatten(-1, (self.n_heads, self.v_dim))
        y_BTD: Tensor = self.y(self.y_norm(o_BTHV, gate=gate_linear_BTHV, activation="silu").flatten(-2))
        if place.patterns:
            gate_BTHV = F.silu(gate_linear_BTHV)
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
        y_BTD: Tensor = self.y(gated(gate_BTF, up_BTF, "silu"))
        if place.patterns:
            place.keep_all(locals())
        return y_BTD


class MainBlock(nn.Module):
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
        self.mixer = Gla(config)
        self.mlp = Swiglu(config)

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        h_BTD = x_BTD + self.mixer(self.h_norm(x_BTD), place.at("mixer"))
        y_BTD: Tensor = h_BTD + self.mlp(self.y_norm(h_BTD), place.at("mlp"))
        if place.patterns:
            place.keep_all(locals())
        return y_BTD


class Model(LanguageModel):
    """gla_small: MainBlock in every layer."""

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

    def prepare_decode(self) -> None:
        """On a GPU, let matrices that read one value lie in one; elsewhere, lay them out for few rows.

        Values, shapes and names stay. Call it after weights are loaded, and again after they were moved or
        converted; until then such a layer runs in its torch form.
        """
        if not self.embedding.weight.is_cuda:
            super().prepare_decode()
            return
        for module in self.modules():
            if isinstance(module, Gla):
                module.join_products()

    def head_weight(self) -> Tensor:
        """The matrix that gives the logits: the embedding's own."""
        return self.embedding.weight

    def context(self) -> int:
        """The length that the model was made for."""
        return self.config.context


def layer_classes(n_layers: int) -> list[type[nn.Module]]:
    """The class of each layer: MainBlock in every layer."""
    return [MainBlock] * n_layers
