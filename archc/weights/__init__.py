"""Published weights and tokenizers, read from files into the names that generated packages use."""

from __future__ import annotations

from archc.weights.errors import WeightsError
from archc.weights.gguf import load_gguf, packaged_file, read_metadata
from archc.weights.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "WeightsError", "load_gguf", "load_tokenizer", "packaged_file", "read_metadata"]
