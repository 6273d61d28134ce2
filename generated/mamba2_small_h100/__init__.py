"""mamba2_small: Mamba-2 without MLPs, for tests and first steps.

Made by archc from mamba2_small.yaml for NVIDIA H100 SXM; needs torch, and Triton on a GPU.

    from mamba2_small import Model
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
