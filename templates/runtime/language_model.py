"""What every model of this kind can do: logits, loss, generation, memory, weights in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .generate import generate
from .loss import chunked_loss, next_tokens
from .place import Layout, Padding, Place, StateError, dense_layout, pack_padding, packed_layout
from .state import State, close_place, open_place

Form = Literal["auto", "step", "chunk"]
_form: Form = "auto"  # a plain global: torch.compile guards on it, and cannot read a context variable


class Loss(NamedTuple):
    """A training loss and its parts: `total = main + aux`."""

    total: Tensor
    main: Tensor
    aux: Tensor


class Loaded(NamedTuple):
    """What `load` did: names of parameters filled from the file, started afresh, and found only in the file."""

    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]


@contextmanager
def form(name: Form) -> Iterator[None]:
    """Force the form of every recurrence inside: "step" is the loop over tokens, "chunk" the parallel one."""
    if name not in ("auto", "step", "chunk"):
        raise ValueError(f'form is "auto", "step" or "chunk", not {name!r}')
    global _form
    before, _form = _form, name
    try:
        yield
    finally:
        _form = before


class LanguageModel(nn.Module):
    """Tokens in, logits out. Subclasses hold `embedding`, `layers`, `norm`, and define `embed` and `project`."""

    embedding: nn.Embedding
    _updates: Sequence[tuple[nn.Module, str, Tensor]] = ()  # buffers and what they become after this step
    layers: nn.ModuleList
    norm: nn.Module
    float32: tuple[str, ...] = ()  # ends of the names of parameters that keep float32 under `.to(bfloat16)`
    causal: bool = True  # False: tokens see later ones, so there is no state and nothing is generated
    undecayed: tuple[str, ...] = ()  # ends of the names of parameters that weight decay leaves alone
    logit_scale: float = 1.0
    softcap: float | None = None

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """`[B, T]` -> `[B, T, D]`."""
        embedded: Tensor = self.embedding(tokens_BT)
        return embedded

    def head_weight(self) -> Tensor:
        """The matrix that gives the logits, `[vocabulary, D]`."""
        raise NotImplementedError

    def project(self, hidden_BTD: Tensor) -> Tensor:
        """`[B, T, D]` -> logits `[B, T, vocabulary]`."""
        logits = nn.functional.linear(hidden_BTD, self.head_weight())
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def hand_down(self, place: Place, x_BTD: Tensor) -> None:
        """Put where layers find it what belongs to no layer: here the embedding of the tokens."""
        place.memo["embedding"] = x_BTD

    # -- forward ------------------------------------------------------------------------------------------------

    def hidden(self, tokens_BT: Tensor, place: Place) -> Tensor:
        """Everything before the logits: `[B, T]` -> `[B, T, D]`."""
        x_BTD = self.embed(tokens_BT)
        self.hand_down(place, x_BTD)
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, place.at(f"layers.{index}"))
        normed: Tensor = self.norm(x_BTD)
        return normed

    def forward(
        self,
        tokens: Tensor,
        *,
        state: State | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        capture: Sequence[str] = (),
        return_state: bool = False,
    ) -> Any:
        """Logits `[B, T, vocabulary]` of tokens `[B, T]`.

        `state`: continue these sequences; it is updated in place, which needs grad to be off.
        `return_state`: return `(logits, state)` with a new state instead, also under grad.
        `cu_seqlens [N + 1]`: `tokens [1, T]` holds N sequences with these borders.
        `attention_mask [B, T]`: nonzero at the tokens that count; padding may stand left or right.
        `capture`: patterns such as `layers.*.mixer.beta`; the return value becomes `(logits, {name: value})`.

        Raises ValueError for a mask with a hole, borders that fall, or both kinds of borders at once; StateError
        for a full cache, a state of other sequences, or a state written in place under grad.
        """
        if return_state and state is None:
            state = self.init_state(len(tokens) if cu_seqlens is None else len(cu_seqlens) - 1)
        tokens_BT, layout, padding = self._arrange(tokens, state, cu_seqlens, attention_mask)
        place = open_place(layout, state, _form, return_state, tuple(capture))
        logits = self.project(self.hidden(tokens_BT, place))
        if padding is not None:
            logits = padding.unpack(logits)
        state = None if state is None else close_place(place, state)
        extra: list[Any] = [state] if return_state else []
        if capture:
            found = dict(place.captured)
            for name, value in found.items():  # values of the model or of blocks have no padding
                if padding is not None and value.shape[:2] == tokens_BT.shape:
                    found[name] = padding.unpack(value)
            extra.append(found)
        return (logits, *extra) if extra else logits

    def _arrange(
        self, tokens: Tensor, state: State | None, cu_seqlens: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Layout, Padding | None]:
        """Tokens, layout, and how to undo the padding."""
        if tokens.dim() != 2:
            raise ValueError(f"tokens are [batch, length], got {list(tokens.shape)}")
        if cu_seqlens is not None and attention_mask is not None:
            raise ValueError("give cu_seqlens or attention_mask, not both")
        if attention_mask is not None:
            if attention_mask.shape != tokens.shape:
                raise ValueError(
                    f"attention_mask is {list(attention_mask.shape)}, tokens {list(tokens.shape)}"
                )
            padding = pack_padding(attention_mask)
            packed = padding.pack(tokens)
            return packed, packed_layout(padding.cu_seqlens, packed.shape[1], state, tokens.shape[1]), padding
        if cu_seqlens is not None:
            if tokens.shape[0] != 1:
                raise ValueError(f"packed tokens are one row, got {tokens.shape[0]}")
            return tokens, packed_layout(cu_seqlens, tokens.shape[1], state), None
        return tokens, dense_layout(tokens, state), None

    # -- memory -------------------------------------------------------------------------------------------------

    def init_state(self, batch_size: int = 1, max_length: int | None = None) -> State:
        """The memory of `batch_size` sequences that have seen no token.

        `max_length`: tokens that caches of full attention can hold; default: the model's context.
        Raises StateError for a model that is not causal.
        """
        if not self.causal:
            raise StateError(
                "this model is not causal: a token sees the whole sequence, so no state can stand for its beginning; "
                "call the model with whole sequences"
            )
        slots = self.context() if max_length is None else max_length
        weight = self.embedding.weight
        memory: dict[str, Tensor] = {}
        limited_by: str | None = None
        for path, module in self._places():
            entries = getattr(module, "state_entries", None)
            if entries is None:
                continue
            for name, entry in entries().items():
                full = f"{path}.{name}"
                memory[full] = entry.tensor(batch_size, slots, weight.dtype, weight.device)
                short = (
                    entry.grows or entry.ring is not None and entry.ring > slots
                )  # a ring that cannot turn
                if short and limited_by is None:
                    limited_by = full
        return State.empty(memory, batch_size, slots, weight.device, limited_by)

    def _places(self) -> Iterator[tuple[str, nn.Module]]:
        """Every place at which a module is called: a shared module stands at each of its sites."""
        for path, module in self.named_modules():
            if path.split(".")[0] != "shared":
                yield path, module
            for slot in getattr(module, "shared_slots", ()):
                shared = self.get_submodule(f"shared.{getattr(module, f'{slot}_name')}")
                for inner, found in shared.named_modules():
                    yield ".".join(filter(None, (path, slot, inner))), found

    def context(self) -> int:
        """The length that the model was made for."""
        raise NotImplementedError

    # -- training -----------------------------------------------------------------------------------------------

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        *,
        chunk: int = 1024,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        z_loss: float = 0.0,
    ) -> Loss:
        """The mean cross entropy of the next tokens; logits exist for `chunk` tokens at a time only.

        `labels [B, T]`: like `tokens` (they are shifted here), -100 where a token does not count; default:
        `tokens`. A model that is not causal is asked for the labels as they are, and needs them: ValueError without.
        `z_loss` weighs the squared log of the softmax's denominator (Chowdhery et al. 2022).
        """
        if labels is None:
            if not self.causal:
                raise ValueError(
                    "this model sees later tokens: give labels, -100 where a token does not count"
                )
            labels = tokens
        if attention_mask is not None:
            labels = labels.masked_fill(~attention_mask.bool(), -100)
        elif cu_seqlens is not None and not self.causal:
            nobody = torch.arange(labels.shape[1], device=labels.device) >= cu_seqlens[-1]
            labels = labels.masked_fill(nobody, -100)
        tokens_BT, layout, padding = self._arrange(tokens, None, cu_seqlens, attention_mask)
        labels_BT = labels if padding is None else padding.pack(labels)
        place = open_place(layout, None, _form)
        place.memo["losses"] = {}
        hidden_BTD = self.hidden(tokens_BT, place)
        targets_BT = next_tokens(labels_BT, layout.cu_seqlens) if self.causal else labels_BT
        found = chunked_loss(
            hidden_BTD, self.head_weight(), targets_BT, chunk, self.logit_scale, self.softcap, z_loss
        )
        aux = found.aux
        for value in place.memo["losses"].values():
            aux = aux + value
        if self.training:
            self._updates = place.memo.get("updates", [])
        return Loss(found.main + aux, found.main, aux)

    @torch.no_grad()
    def post_step(self) -> None:
        """Give buffers the values that the last `loss` in training found for them; call it after the optimiser."""
        for module, name, value in self._updates:
            module.get_buffer(name).copy_(value)
        self._updates = []

    def parameter_groups(self, weight_decay: float = 0.1) -> list[dict[str, Any]]:
        """Two groups for an optimiser: matrices, which decay, and vectors, embeddings and gates, which do not."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        embeddings = {id(self.embedding.weight)}
        for name, parameter in self.named_parameters():
            keep = (
                parameter.dim() < 2
                or id(parameter) in embeddings
                or f".{name}".endswith((*self.float32, *self.undecayed, "\0"))
            )
            (free if keep else decayed).append(parameter)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]

    def generate(self, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Continue `tokens [B, T]`: greedy, or sampled with `temperature=`, `top_k=`, `top_p=`; see `generate.py`."""
        return generate(self, tokens, max_new_tokens, **options)

    def prepare_decode(self) -> None:
        """Lay the matrices out input by input, in place: on a CPU, products with few rows read them faster so.

        Values, shapes and names stay; strides change. For inference: call it after weights are loaded. To write
        the weights with safetensors afterwards, make them contiguous first.
        """
        head = self.head_weight()
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear) or getattr(module, "weight", None) is head:
                    weight = module.get_parameter("weight")
                    weight.data = weight.data.t().contiguous().t()

    # -- weights ------------------------------------------------------------------------------------------------

    def init_weights(self) -> None:
        """Draw all weights: the default for matrices, then what the equations say."""
        module: Any
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for module in self.modules():
            if module is not self and hasattr(module, "init_weights"):
                module.init_weights()
        self.init_own_weights()

    def init_own_weights(self) -> None:
        """Draw the weights that belong to no layer, where they do not start like others."""

    def load(
        self, source: str | Path | Mapping[str, Tensor], missing: Literal["init", "error"] = "error"
    ) -> Loaded:
        """Fill the parameters from a safetensors or torch file, or from a mapping of names.

        Every name and shape that fits is loaded. `missing="error"`: KeyError naming the parameters that the source
        lacks or holds in another shape, before anything is changed; `"init"`: they keep their drawn values.
        """
        tensors = source if isinstance(source, Mapping) else _read(Path(source))
        own = dict(self.named_parameters())
        fitting = {name for name in own if name in tensors and tensors[name].shape == own[name].shape}
        lacking = [name for name in own if name not in fitting]
        if lacking and missing == "error":
            shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            raise KeyError(f"not in the file, or of another shape: {shown}")
        with torch.no_grad():
            for name in fitting:
                own[name].copy_(tensors[name])
        return Loaded(
            tuple(sorted(fitting)), tuple(lacking), tuple(sorted(name for name in tensors if name not in own))
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        """Parameters that feed decays and routers keep float32: rounding them changes what a model remembers."""
        kept = {
            name: parameter.detach().clone()
            for name, parameter in self.named_parameters()
            if self.float32 and f".{name}".endswith(self.float32) and parameter.dtype == torch.float32
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, parameter in self.named_parameters():
            if name in kept and parameter.dtype not in (torch.float32, torch.float64):
                parameter.data = kept[name].to(device=parameter.device)
        return self


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    loaded: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
