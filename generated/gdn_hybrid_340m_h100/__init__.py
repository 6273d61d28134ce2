"""gdn_hybrid_340m: Gated DeltaNet and softmax attention, 3:1, 340M.

Made by archc from gdn_hybrid_340m.yaml for NVIDIA H100 SXM; needs torch, and Triton on a GPU.

    from gdn_hybrid_340m import Model
    model = Model()
    logits = model(tokens)  # [B, T] -> [B, T, 32000]
"""

from __future__ import annotations

from .config import Config
from .language_model import Loaded, Loss, form
from .model import Model
from .place import StateError
from .state import State

__all__ = ["Config", "Loaded", "Loss", "Model", "State", "StateError", "form"]
