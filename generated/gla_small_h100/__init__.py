"""gla_small: Gated linear attention, for tests and first steps.

Made by archc from gla_small.yaml for NVIDIA H100 SXM; needs torch, and Triton on a GPU.

    from gla_small import Model
    model = Model()
    logits = model(tokens)  # [B, T] -> [B, T, 256]
"""

from __future__ import annotations

from .config import Config
from .language_model import Loaded, Loss, form
from .model import Model
from .place import StateError
from .state import State

__all__ = ["Config", "Loaded", "Loss", "Model", "State", "StateError", "form"]
