"""The numbers of smollm2_135m, each with one name. All may be changed without a rebuild."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    vocab_size: int = 49152  # tokens of the vocabulary
    d_model: int = 576  # width of the residual stream
    n_layers: int = 30  # layers
    context: int = 8192  # tokens the model was made for
    attention_n_heads: int = 9  # query heads
    attention_n_kv_heads: int = 3  # key and value heads
    attention_rope_theta: int = 100000
    swiglu_d_ff: int = 1536  # hidden width; given, expansion and multiple_of do not matter

    @property
    def attention_head_dim(self) -> int:
        return whole(Fraction(self.d_model, self.attention_n_heads), "attention_head_dim")


def whole(value: Fraction | int, name: str) -> int:
    """A size as an int. Raises ValueError if it is not whole."""
    if value != int(value):
        raise ValueError(f"{name} comes to {value}, which is not a whole number")
    return int(value)
