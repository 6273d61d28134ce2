"""gdn_hybrid_340m: Gated DeltaNet and softmax attention, 3:1, 340M.

365,139,672 parameters, 729,726,976 FLOPs a token in matrices.
Memory of a sequence, activations in 2 bytes: 14,487,552 bytes of state, 6,144 bytes of cache a token.

Axes: B batch, T tokens, D d_model, F d_ff, G n_kv_heads, H n_heads, K head_dim, V v_dim, W n_v_heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attention
from .config import Config
from .conv1d import CausalConv1d
from .fused_conv import Conv, conv_act_norm
from .fused_glu import gated
from .fused_norms import RMSNorm
from .gates import gated_deltanet_beta_decay
from .head_decay_delta import head_decay_delta
from .initial import inverse_softplus, log_uniform, normal, uniform
from .joined import Joined, decodes, join
from .language_model import LanguageModel
from .place import Place
from .rope import rope
from .state import Entry


class GatedDeltanet(nn.Module):
    """Gated DeltaNet.

    Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464; negative eigenvalues: Grazzi et al. 2024, arXiv 2411.12537

    q: l2norm(silu(conv1d(linear(x, [n_heads, head_dim]), conv)), eps=0.000001)
    k: l2norm(silu(conv1d(linear(x, [n_heads, head_dim]), conv)), eps=0.000001)
    v: silu(conv1d(linear(x, [n_v_heads, v_dim]), conv))
    beta: sigmoid(linear(x, [n_v_heads])) * 1
    decay: mamba_decay(linear(x, [n_v_heads]))
    o: recurrence(q, k, v, decay=decay, beta=beta, scale=auto)
    gate: silu(linear(x, [n_v_heads, v_dim]))
    y: linear(rmsnorm(o) * gate, d_model)
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.gated_deltanet_n_heads
        self.head_dim = config.gated_deltanet_head_dim
        self.n_v_heads = config.gated_deltanet_n_v_heads
        self.v_dim = config.gated_deltanet_v_dim
        self.d_model = config.d_model
        self.conv = config.gated_deltanet_conv
        self.q = nn.Linear(self.d_model, self.n_heads * self.head_dim, bias=False)
        self.q_conv = CausalConv1d(self.n_heads * self.head_dim, self.conv)
        self.k = nn.Linear(self.d_model, self.n_heads * self.head_dim, bias=False)
        self.k_conv = CausalConv1d(self.n_heads * self.head_dim, self.conv)
        self.v = nn.Linear(self.d_model, self.n_v_heads * self.v_dim, bias=False)
        self.v_conv = CausalConv1d(self.n_v_heads * self.v_dim, self.conv)
        self.beta = nn.Linear(self.d_model, self.n_v_heads, bias=False)
        self.decay = nn.Linear(self.d_model, self.n_v_heads, bias=False)
        self.decay_dt_bias = nn.Parameter(torch.empty(self.n_v_heads))
        self.decay_A_log = nn.Parameter(torch.empty(self.n_v_heads))
        self.gate = nn.Linear(self.d_model, self.n_v_heads * self.v_dim, bias=False)
        self.y_norm = RMSNorm((self.v_dim,), eps=1e-05)
        self.y = nn.Linear(self.n_v_heads * self.v_dim, self.d_model, bias=False)
        self.joined: list[Joined] = []

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights whose equations say how they start."""
        self.q.weight.copy_(normal(self.q.weight, 0, 0.02))
        self.k.weight.copy_(normal(self.k.weight, 0, 0.02))
        self.v.weight.copy_(normal(self.v.weight, 0, 0.02))
        self.beta.weight.copy_(normal(self.beta.weight, 0, 0.02))
        self.decay.weight.copy_(normal(self.decay.weight, 0, 0.02))
        self.decay_dt_bias.copy_(inverse_softplus(log_uniform(self.decay_dt_bias, 0.001, 0.1)))
        self.decay_A_log.copy_(torch.log(uniform(self.decay_A_log, 0, 16)))
        self.gate.weight.copy_(normal(self.gate.weight, 0, 0.02))
        self.y.weight.copy_(normal(self.y.weight, 0, 0.02))

    def state_entries(self) -> dict[str, Entry]:
        """The memory of one sequence."""
        return {
            "q_conv": Entry((self.conv - 1, self.n_heads * self.head_dim)),
            "k_conv": Entry((self.conv - 1, self.n_heads * self.head_dim)),
            "v_conv": Entry((self.conv - 1, self.n_v_heads * self.v_dim)),
            "o": Entry((self.n_v_heads, self.head_dim, self.v_dim), dtype=torch.float32),
        }

    def join_products(self) -> None:
        """Let the matrices that read one value lie in one, which decoding on a GPU reads in one launch."""
        self.joined = join(
            self,
            [
                ["v", "gate", "q", "k", "beta", "decay"],
            ],
        )

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        if self.joined and decodes(self.joined, x_BTD, place):
            from .gated_deltanet_token_kernels import decode_token

            return decode_token(self, x_BTD, place)
        q_BTHK, k_BTHK, v_BTWV = conv_act_norm(
            place,
            Conv(
                self.q_conv,
                "q_conv",
                self.q(x_BTD).unflatten(-1, (self.n_heads, self.head_dim)),
                "silu",
                l2norm=1e-06,
            ),
            Conv(
                self.k_conv,
                "k_conv",
                self.k(x_BTD).unflatten(-1, (self.n_heads, self.head_dim)),
                "silu",
                l2norm=1e-06,
            ),
            Conv(self.v_conv, "v_conv", self.v(x_BTD).unflatten(-1, (self.n_v_heads, self.v_dim)), "silu"),
        )
        beta_BTW, decay_BTW = gated_deltanet_beta_decay(
            self.beta(x_BTD), self.decay(x_BTD), self.decay_dt_bias, self.decay_A_log
        )
        o_BTWV = head_decay_delta(
            q_BTHK, k_BTHK, v_BTWV, decay_BTW, beta_BTW, scale=self.head_dim**-0.5, place=place, key="o"
        )
        gate_linear_BTWV = self.gate(x_BTD).unflatten(-1, (self.n_v_heads, self.v_dim))
        y_BTD: Tensor = self.y(self.y_norm(o_BTWV, gate=gate_linear_BTWV, activation="silu").flatten(-2))
        if place.patterns:
            gate_BTWV = F.silu(gate_linear_BTWV)
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


class LinearBlock(nn.Module):
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
        self.mixer = GatedDeltanet(config)
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
    """gdn_hybrid_340m: 3 LinearBlock, 1 FullBlock in turn."""

    float32 = (
        ".decay_A_log",
        ".decay_dt_bias",
    )

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
            if isinstance(module, GatedDeltanet):
                module.join_products()

    def head_weight(self) -> Tensor:
        """The matrix that gives the logits: the embedding's own."""
        return self.embedding.weight

    def context(self) -> int:
        """The length that the model was made for."""
        return self.config.context


def layer_classes(n_layers: int) -> list[type[nn.Module]]:
    """The class of each layer: 3 LinearBlock, 1 FullBlock in turn."""
    cycle: list[type[nn.Module]] = [LinearBlock] * 3 + [FullBlock]
    return [cycle[layer % len(cycle)] for layer in range(n_layers)]
