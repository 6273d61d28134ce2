"""The numbers of gdn_hybrid_340m, each with one name. All may be changed without a rebuild."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from .exact import round_up


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    vocab_size: int = 32000  # tokens of the vocabulary
    d_model: int = 1024  # width of the residual stream
    n_layers: int = 24  # layers
    context: int = 8192  # tokens the model was made for
    gated_deltanet_n_heads: int = 6  # query and key heads
    gated_deltanet_head_dim: int = 128  # size of a key
    gated_deltanet_expand_v: int = 2  # size of a value over size of a key
    gated_deltanet_conv: int = 4  # width of the short convolutions
    swiglu_expansion: Fraction = Fraction(8, 3)  # d_ff over d_model; 8/3 has the size of a plain MLP of 4
    swiglu_multiple_of: int = 64  # d_ff is rounded up to a multiple of this
    attention_n_heads: int = 16  # query heads
    attention_n_kv_heads: int = 4  # key and value heads
    attention_rope_theta: int = 500000

    @property
    def gated_deltanet_n_v_heads(self) -> int:
        """Value heads."""
        return self.gated_deltanet_n_heads

    @property
    def gated_deltanet_v_dim(self) -> int:
        return self.gated_deltanet_head_dim * self.gated_deltanet_expand_v

    @property
    def swiglu_d_ff(self) -> int:
        """Hidden width; given, expansion and multiple_of do not matter."""
        return whole(
            round_up(math.floor(self.swiglu_expansion * self.d_model), self.swiglu_multiple_of), "swiglu_d_ff"
        )

    @property
    def attention_head_dim(self) -> int:
        return whole(Fraction(self.d_model, self.attention_n_heads), "attention_head_dim")


def whole(value: Fraction | int, name: str) -> int:
    """A size as an int. Raises ValueError if it is not whole."""
    if value != int(value):
        raise ValueError(f"{name} comes to {value}, which is not a whole number")
    return int(value)
