"""The tokenizer of a GGUF file against the tokenizer library's own pieces and against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from archc.weights import Tokenizer, WeightsError, load_tokenizer, read_metadata

TEXTS = {
    "empty": "",
    "english": "The quick brown fox didn't jump; it's lazy, they've said — we'll see.",
    "accents": "Übergrößenträger, naïve café, façade, Ångström, señor, žluťoučký kůň",
    "scripts": "Привет мир 你好，世界 こんにちは 안녕하세요 नमस्ते مرحبا שלום ไทย",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 \U0001f9ff e\u0301",
    "code": "def f(x: int) -> str:\n    return f'{x!r:>10}'\n\n\tif (a != b && c <= 0x1F) { y[i++]--; }\n",
    "space": "a  b   c\t\td \n\n\n  e \r\n f\u00a0g\u2003h   ",
    "numbers": "x=3.14159 v2.0 1,000,000 $5 №7",
    "control": "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><|im_start |>",
    "bytes": "\x00\x01\x7f\u0085\ufeff\ufffd\u2028",
}


@pytest.fixture(scope="module")
def tokenizer(published: Path) -> Tokenizer:
    return load_tokenizer(published)


@pytest.fixture(scope="module")
def theirs(published: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(published.parent, gguf_file=published.name)


@pytest.fixture(scope="module")
def reference(published: Path) -> tokenizers.Tokenizer:
    """The cut of the model's training, from the library's own parts: digits alone, then GPT-2's words."""
    metadata = read_metadata(published)
    words = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split()) for merge in metadata["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return backend


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_same_tokens_as_transformers(tokenizer: Tokenizer, theirs: Any, name: str) -> None:
    assert tokenizer.encode(TEXTS[name]) == theirs(TEXTS[name], add_special_tokens=False).input_ids


def test_spaces_before_digits_stay_together(tokenizer: Tokenizer) -> None:
    """Digits are cut off first, so the spaces before them are one piece."""
    assert tokenizer.backend.token_to_id("ĠĠ") in tokenizer.encode("a  12")


@pytest.mark.slow
def test_transformers_takes_them_apart(tokenizer: Tokenizer, theirs: Any) -> None:
    """Where this fails, transformers cuts as in training too, and a text with such spaces can be compared."""
    spaces = tokenizer.backend.token_to_id("ĠĠ")
    assert spaces not in theirs("a  12", add_special_tokens=False).input_ids


@settings(max_examples=150)
@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.text(" \n\ta'1½x.é你", max_size=40))
def test_any_text_is_cut_as_in_training_and_comes_back(
    tokenizer: Tokenizer, reference: tokenizers.Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False).ids
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = "".join(piece for piece, _ in alphabet.pre_tokenize_str(text))
    if all(tokenizer.backend.token_to_id(byte) is not None for byte in spelled):  # some bytes have no token
        assert tokenizer.decode(ids) == text


def test_control_tokens_are_left_out_of_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>Hi<|im_end|>")
    assert (ids[0], ids[-1]) == (tokenizer.bos, tokenizer.eos) == (1, 2)
    assert tokenizer.decode(ids) == "Hi"
    assert tokenizer.decode(ids, keep_control=True) == "<|im_start|>Hi<|im_end|>"


@pytest.mark.slow
@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "What is 2 + 2?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        [{"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "b"), ("user", "{{ 1 + 1 }}")]],
    ],
)
def test_same_chat_as_transformers(
    tokenizer: Tokenizer, theirs: Any, messages: list[dict[str, str]], answer: bool
) -> None:
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    assert tokenizer.chat(messages, answer=answer) == expected


def write(path: Path, *, model: str = "gpt2", pre: str = "gpt-2", template: str = "") -> None:
    """A file with a tokenizer of three words."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([1, 1, 1])
    writer.add_token_merges(["a b"])
    if template:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_small_file(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    assert load_tokenizer(tmp_path / "a.gguf").encode("aabb") == [0, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "llama"}, "only byte-level BPE"),
        ({"pre": "tekken"}, "cuts text as 'tekken'; known: gpt-2, "),
    ],
)
def test_tokenizers_of_another_kind(tmp_path: Path, options: dict[str, str], message: str) -> None:
    write(tmp_path / "a.gguf", **options)
    with pytest.raises(WeightsError, match=message):
        load_tokenizer(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "refuses these messages"),
        ("{% for", "refuses these messages"),
    ],
)
def test_chat_templates_that_fail(tmp_path: Path, template: str, message: str) -> None:
    write(tmp_path / "a.gguf", template=template)
    with pytest.raises(WeightsError, match=message):
        load_tokenizer(tmp_path / "a.gguf").chat([{"role": "user", "content": "Hi"}])
