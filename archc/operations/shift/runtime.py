"""Earlier tokens of the same sequence."""

from __future__ import annotations

from torch import Tensor

from .history import extend, last_tokens
from .place import Place


def shift(x: Tensor, place: Place, key: str, steps: int = 1) -> Tensor:
    """`x [B, T, ...]` as it was `steps` tokens earlier in the same sequence, and zero before its first token.

    The state entry is the last `steps` inputs of each sequence, `[N, steps, ...]`.
    """
    cu_seqlens = place.layout.cu_seqlens
    past = place.read(key)
    if past is None:
        earlier, rows = extend(x.flatten(2), None, cu_seqlens, steps)
    else:
        flat = past.flatten(2)
        earlier, rows = extend(x.flatten(2), flat, cu_seqlens, steps)
        place.write(key, last_tokens(x.flatten(2), flat, cu_seqlens).view(past.shape))
    earlier = earlier[:, : x.shape[1]] if rows is None else earlier[:, rows - steps]
    return earlier.reshape(x.shape)
