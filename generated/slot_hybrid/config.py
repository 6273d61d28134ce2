"""The numbers of slot_hybrid, each with one name. All may be changed without a rebuild."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from .exact import round_up


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    vocab_size: int = 256  # tokens of the vocabulary
    d_model: int = 128  # width of the residual stream
    n_layers: int = 4  # layers
    context: int = 512  # tokens the model was made for
    gated_slot_attention_n_heads: int = 4  # query heads
    gated_slot_attention_n_kv_heads: int = 2  # heads of keys, values and gates
    gated_slot_attention_n_slots: int = 16  # memory slots of a head
    gated_slot_attention_tau: int = 8  # temperature of the forget gate, alpha = sigmoid(.) ** (1 / tau)
    swiglu_expansion: Fraction = Fraction(8, 3)  # d_ff over d_model; 8/3 has the size of a plain MLP of 4
    swiglu_multiple_of: int = 32  # d_ff is rounded up to a multiple of this
    attention_n_heads: int = 4  # query heads
    attention_n_kv_heads: int = 2  # key and value heads
    attention_rope_theta: int = 10000

    @property
    def gated_slot_attention_head_dim(self) -> int:
        return whole(
            Fraction(self.d_model, self.gated_slot_attention_n_heads), "gated_slot_attention_head_dim"
        )

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
