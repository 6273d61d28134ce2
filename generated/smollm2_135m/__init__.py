"""smollm2_135m: SmolLM2-135M.

Made by archc from smollm2_135m.yaml; needs torch and nothing else.

    from smollm2_135m import Model
    model = Model()
    logits = model(tokens)  # [B, T] -> [B, T, 49152]
"""

from __future__ import annotations

from .config import Config
from .language_model import Loaded, Loss, form
from .model import Model
from .place import StateError
from .state import State

__all__ = ["Config", "Loaded", "Loss", "Model", "State", "StateError", "form"]
