"""The numbers of gla_small, each with one name. All may be changed without a rebuild."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    vocab_size: int = 256  # tokens of the vocabulary
    d_model: int = 192  # width of the residual stream
    n_layers: int = 4  # layers
    context: int = 1024  # tokens the model was made for
    gla_n_heads: int = 3  # query heads
    gla_expand_k: Fraction = Fraction(1, 2)  # all keys together over d_model
    gla_expand_v: int = 1  # all values together over d_model
    gla_gate_rank: int = 16
    gla_tau: int = 16  # the decay is alpha = sigmoid(.) ** (1 / tau)
    swiglu_d_ff: int = 512  # hidden width; given, expansion and multiple_of do not matter

    @property
    def gla_n_kv_heads(self) -> int:
        """Heads of keys, values and decays."""
        return self.gla_n_heads

    @property
    def gla_head_dim(self) -> int:
        return whole(Fraction(self.gla_expand_k * self.d_model, self.gla_n_heads), "gla_head_dim")

    @property
    def gla_v_dim(self) -> int:
        return whole(Fraction(self.gla_expand_v * self.d_model, self.gla_n_heads), "gla_v_dim")


def whole(value: Fraction | int, name: str) -> int:
    """A size as an int. Raises ValueError if it is not whole."""
    if value != int(value):
        raise ValueError(f"{name} comes to {value}, which is not a whole number")
    return int(value)
