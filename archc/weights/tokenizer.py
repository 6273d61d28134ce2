"""Builds a byte-level BPE tokenizer from the metadata of a GGUF file, chat template included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from archc.data import data_folder
from archc.weights.errors import WeightsError
from archc.weights.gguf import read_metadata

if TYPE_CHECKING:
    import jinja2
    import tokenizers

_CONTROL, _USER_DEFINED = 3, 4  # entries of `tokenizer.ggml.token_type`


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back. `backend` is the whole `tokenizers.Tokenizer`."""

    backend: tokenizers.Tokenizer
    bos: int | None
    eos: int | None
    template: str

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, nothing added. Names of control tokens in the text become these tokens.

        A byte that the vocabulary lacks is dropped.
        """
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """The text of token ids; control tokens are left out unless `keep_control`."""
        return str(self.backend.decode(list(ids), skip_special_tokens=not keep_control))

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """Messages such as `{"role": "user", "content": "Hi"}` as one text, opened for an answer if `answer`.

        Raises `WeightsError` where the file has no chat template, or the template refuses the messages.
        """
        import jinja2

        if not self.template:
            raise WeightsError("this file has no chat template: it is not a model for conversations")
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=answer,
                bos_token=self._word(self.bos),
                eos_token=self._word(self.eos),
            )
        except jinja2.TemplateError as error:
            raise WeightsError(f"the chat template refuses these messages: {error}") from error

    def _word(self, token: int | None) -> str:
        return "" if token is None else self.backend.id_to_token(token) or ""

    @cached_property
    def _template(self) -> jinja2.Template:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        # A template comes with the file, unread by anybody. The settings are those that templates expect.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        return environment.from_string(self.template)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer inside a GGUF file.

    Raises `WeightsError` where the file holds none, or one that is not byte-level BPE, or one that cuts text
    in a way that `specs/tokenizers/` does not know.
    """
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers
    except ImportError as error:
        raise WeightsError("this needs the package tokenizers; try: pip install tokenizers") from error

    metadata = read_metadata(path)
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":  # the format's name of byte-level BPE, whatever the model
        raise WeightsError(f"{path}: the tokenizer is {kind!r}; only byte-level BPE ('gpt2') can be read")
    words: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type") or []
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges") or []]
    if not words or any(len(merge) != 2 for merge in merges):
        raise WeightsError(f"{path}: the tokenizer's words or merges are damaged")
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
    splits = _splits(str(metadata.get("tokenizer.ggml.pre", "gpt-2")), path)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in splits),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    for wanted in (_CONTROL, _USER_DEFINED):
        added = [
            tokenizers.AddedToken(word, special=wanted == _CONTROL, normalized=False)
            for word, kind in zip(words, kinds, strict=False)
            if kind == wanted
        ]
        backend.add_special_tokens(added) if wanted == _CONTROL else backend.add_tokens(added)
    return Tokenizer(
        backend,
        bos=metadata.get("tokenizer.ggml.bos_token_id"),
        eos=metadata.get("tokenizer.ggml.eos_token_id"),
        template=str(metadata.get("tokenizer.chat_template", "")),
    )


def _splits(name: str, path: str | Path) -> list[str]:
    known: dict[str, Any] = {}
    for file in sorted((data_folder("specs") / "tokenizers").glob("*.yaml")):
        known |= yaml.safe_load(file.read_text(encoding="utf-8"))["splits"]
    if name not in known:
        raise WeightsError(f"{path}: the tokenizer cuts text as {name!r}; known: {', '.join(sorted(known))}")
    return [str(pattern) for pattern in known[name]]
