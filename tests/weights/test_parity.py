"""The compiled model with published weights against transformers with the same file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import archc
from archc.weights import Tokenizer, load_tokenizer

pytestmark = pytest.mark.timeout(600)
SPEC = Path(__file__).resolve().parents[2] / "specs" / "models" / "smollm2_135m.yaml"
LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"
PROMPTS = [
    "What is the capital of France?",
    "Write a function in Python that adds two numbers.",
    "Why is the sky blue? Explain in two sentences.",
    "List the first 12 prime numbers.",
    "Übersetze ins Deutsche: good morning, my friend!",
]


@pytest.fixture(scope="module")
def tokenizer(published: Path) -> Tokenizer:
    return load_tokenizer(published)


@pytest.fixture(scope="module")
def ours(published_weights: dict[str, torch.Tensor]) -> Any:
    model = archc.load(SPEC).Model()
    model.load_state_dict(published_weights)
    return model.eval()


@pytest.fixture(scope="module")
def theirs(published: Path) -> Iterator[Any]:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(published.parent, gguf_file=published.name, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # no end: both sides write as many tokens as asked for
    yield model


@pytest.mark.slow
@torch.no_grad()
def test_logits_and_perplexity(ours: Any, theirs: Any, tokenizer: Tokenizer) -> None:
    tokens = torch.tensor([tokenizer.encode(LICENSE.read_text(encoding="utf-8"))[:1024]])
    assert tokens.shape == (1, 1024)
    found, expected = ours(tokens), theirs(tokens).logits
    assert float((found - expected).abs().max()) <= 1e-3
    perplexity = [
        float(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).exp())
        for logits in (found, expected)
    ]
    assert f"{perplexity[0]:.4g}" == f"{perplexity[1]:.4g}"
    assert perplexity[0] < 20, "a model with wrong weights is lost in this text"


@torch.no_grad()
@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(p, marks=pytest.mark.library if i in (2, 3) else pytest.mark.slow)
        for i, p in enumerate(PROMPTS)
    ],
)
def test_greedy_continuations(ours: Any, theirs: Any, tokenizer: Tokenizer, prompt: str) -> None:
    tokens = torch.tensor([tokenizer.encode(tokenizer.chat([{"role": "user", "content": prompt}]))])
    found = ours.generate(tokens, max_new_tokens=64)
    expected = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=64, do_sample=False
    )
    assert found.shape == (1, tokens.shape[1] + 64)
    assert found.tolist() == expected.tolist()


@pytest.mark.slow
@torch.no_grad()
def test_an_answer(ours: Any, tokenizer: Tokenizer) -> None:
    tokens = torch.tensor([tokenizer.encode(tokenizer.chat([{"role": "user", "content": PROMPTS[0]}]))])
    answer = ours.generate(tokens, max_new_tokens=16)[0, tokens.shape[1] :].tolist()
    assert "Paris" in tokenizer.decode(answer)
