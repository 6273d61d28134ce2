"""The numbers of mamba2_small, each with one name. All may be changed without a rebuild."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    vocab_size: int = 256  # tokens of the vocabulary
    d_model: int = 192  # width of the residual stream
    n_layers: int = 6  # layers
    context: int = 1024  # tokens the model was made for
    mamba2_head_dim: int = 32
    mamba2_d_state: int = 32
    mamba2_n_groups: int = 2  # heads of B and C
    mamba2_expand: int = 2  # inner width over d_model
    mamba2_conv: int = 4  # width of the short convolution

    @property
    def mamba2_d_inner(self) -> int:
        return self.mamba2_expand * self.d_model

    @property
    def mamba2_n_heads(self) -> int:
        return whole(Fraction(self.mamba2_d_inner, self.mamba2_head_dim), "mamba2_n_heads")

    @property
    def mamba2_d_conv(self) -> int:
        return self.mamba2_d_inner + 2 * self.mamba2_n_groups * self.mamba2_d_state

    @property
    def mamba2_group_dim(self) -> int:
        return whole(Fraction(self.mamba2_d_inner, self.mamba2_n_groups), "mamba2_group_dim")


def whole(value: Fraction | int, name: str) -> int:
    """A size as an int. Raises ValueError if it is not whole."""
    if value != int(value):
        raise ValueError(f"{name} comes to {value}, which is not a whole number")
    return int(value)
