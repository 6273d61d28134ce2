"""mamba2_small: Mamba-2 without MLPs, for tests and first steps.

1,556,760 parameters, 3,075,072 FLOPs a token in matrices.
Memory of a sequence, activations in 2 bytes: 313,344 bytes of state.

Axes: B batch, T tokens, C d_conv, D d_model, G n_groups, H n_heads, I d_inner + d_conv + n_heads, K
    head_dim, N d_state, R group_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import Config
from .conv1d import CausalConv1d
from .fused_conv import Conv, conv_act_norm
from .fused_glu import gated
from .fused_norms import RMSNorm
from .gates import mamba2_dt_free, mamba2_o, mamba2_o_2
from .head_decay import head_decay
from .initial import inverse_softplus, log_uniform, normal, uniform
from .language_model import LanguageModel
from .place import Place
from .state import Entry


class Mamba2(nn.Module):
    """Mamba-2.

    Dao, Gu 2024, arXiv 2405.21060

    z, xbc, dt_in: split(linear(x, d_inner + d_conv + n_heads, name=in_proj), [n_heads, head_dim], d_conv,
        [n_heads])
    mixed: silu(conv1d(xbc, conv, bias=true))
    v, k, q: split(mixed, [n_heads, head_dim], [n_groups, d_state], [n_groups, d_state])
    dt_free: softplus(dt_in + param(dt_bias, [n_heads], init=inverse_softplus(log_uniform(0.001, 0.1))))
    A: -exp(param(A_log, [n_heads], init=log(uniform(1, 16))))
    o: recurrence(q, k, dt * v, decay=A * dt, scale=1) + param(D, [n_heads], init=1) * v
    gated: reshape(o * silu(z), [n_groups, group_dim])
    y: linear(rmsnorm(gated, weight=[n_groups, group_dim], eps=0.00001), d_model)
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.mamba2_n_heads
        self.head_dim = config.mamba2_head_dim
        self.d_conv = config.mamba2_d_conv
        self.n_groups = config.mamba2_n_groups
        self.d_state = config.mamba2_d_state
        self.group_dim = config.mamba2_group_dim
        self.d_model = config.d_model
        self.d_inner = config.mamba2_d_inner
        self.conv = config.mamba2_conv
        self.in_proj = nn.Linear(self.d_model, self.d_inner + self.d_conv + self.n_heads, bias=False)
        self.mixed_conv = CausalConv1d(self.d_conv, self.conv, bias=True)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads))
        self.D = nn.Parameter(torch.empty(self.n_heads))
        self.y_norm = RMSNorm((self.n_groups, self.group_dim), eps=1e-05)
        self.y = nn.Linear(self.n_groups * self.group_dim, self.d_model, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights whose equations say how they start."""
        self.in_proj.weight.copy_(normal(self.in_proj.weight, 0, 0.02))
        self.dt_bias.copy_(inverse_softplus(log_uniform(self.dt_bias, 0.001, 0.1)))
        self.A_log.copy_(torch.log(uniform(self.A_log, 1, 16)))
        self.D.fill_(1)
        self.y.weight.copy_(normal(self.y.weight, 0, 0.02))

    def state_entries(self) -> dict[str, Entry]:
        """The memory of one sequence."""
        return {
            "mixed_conv": Entry((self.conv - 1, self.d_conv)),
            "o": Entry((self.n_heads, self.d_state, self.head_dim), dtype=torch.float32),
        }

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        z, xbc_BTC, dt_in_BTH = torch.split(
            self.in_proj(x_BTD), [self.n_heads * self.head_dim, self.d_conv, self.n_heads], dim=-1
        )
        z_BTHK = torch.unflatten(z, -1, (self.n_heads, self.head_dim))
        mixed_BTC = conv_act_norm(place, Conv(self.mixed_conv, "mixed_conv", xbc_BTC, "silu"))[0]
        v, k, q = torch.split(
            mixed_BTC,
            [self.n_heads * self.head_dim, self.n_groups * self.d_state, self.n_groups * self.d_state],
            dim=-1,
        )
        v_BTHK = torch.unflatten(v, -1, (self.n_heads, self.head_dim))
        k_BTGN = torch.unflatten(k, -1, (self.n_groups, self.d_state))
        q_BTGN = torch.unflatten(q, -1, (self.n_groups, self.d_state))
        dt_free_BTH = mamba2_dt_free(dt_in_BTH, self.dt_bias)
        o_cast_like_BTHK, o_mul_BTH = mamba2_o(self.A_log, dt_free_BTH, v_BTHK)
        o_BTHK = mamba2_o_2(
            self.D,
            v_BTHK,
            head_decay(q_BTGN, k_BTGN, o_cast_like_BTHK, o_mul_BTH, scale=1, place=place, key="o"),
        )
        gated_BTGR = torch.unflatten(
            gated(z_BTHK, o_BTHK, "silu").flatten(-2), -1, (self.n_groups, self.group_dim)
        )
        y_BTD: Tensor = self.y(self.y_norm(gated_BTGR).flatten(-2))
        if place.patterns:
            A_H = -torch.exp(self.A_log)
            place.keep_all(locals())
        return y_BTD


class MainBlock(nn.Module):
    """Pre-norm residual block with one sublayer.

    Xiong et al. 2020, arXiv 2002.04745

    y: x + mixer(norm(x))
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.y_norm = RMSNorm((self.d_model,), eps=1e-05)
        self.mixer = Mamba2(config)

    def forward(self, x_BTD: Tensor, place: Place) -> Tensor:
        y_BTD: Tensor = x_BTD + self.mixer(self.y_norm(x_BTD), place.at("mixer"))
        if place.patterns:
            place.keep_all(locals())
        return y_BTD


class Model(LanguageModel):
    """mamba2_small: MainBlock in every layer."""

    float32 = (
        ".A_log",
        ".dt_bias",
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

    def head_weight(self) -> Tensor:
        """The matrix that gives the logits: the embedding's own."""
        return self.embedding.weight

    def context(self) -> int:
        """The length that the model was made for."""
        return self.config.context


def layer_classes(n_layers: int) -> list[type[nn.Module]]:
    """The class of each layer: MainBlock in every layer."""
    return [MainBlock] * n_layers
