"""slot_hybrid: Gated slot attention and full attention, 3:1.

Made by archc from slot_hybrid.yaml; needs torch and nothing else.

    from slot_hybrid import Model
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
