"""The model itself in a self-test: a few of its layers on the device against the same layers in float64 on the CPU.

This covers every kernel between tokens and logits: convolutions, norms, products, decode steps, as the model calls
them. Layers are as many as show each kind of them; the vocabulary is small; weights are random.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Config
from .language_model import LanguageModel, form
from .model import Model
from .selftest_oracle import Results, RoundedProducts, errors_of, largest, rounding

LARGEST = 1_000_000_000  # parameters of the layers that are checked, where there is memory for them
BYTES = (
    100  # of the host's memory for each: copies in three dtypes, gradients of five runs, and as much again
)
VOCABULARY = 512
STEPS = 4
# What a kernel rounds inside comes on top of what the torch form rounds between operations, and is at most as much.
SLACK = 2.0


class Case(NamedTuple):
    """One way to call the model."""

    name: str
    what: str
    lengths: tuple[int, ...]


class Compared(NamedTuple):
    """One case in one dtype: what the device gave, what it should be, and how far apart they may be."""

    case: str
    what: str
    dtype: str
    got: Results
    want: Results
    allowed: dict[str, float]


def reduced() -> LanguageModel | None:
    """The first layers up to the last new kind, float32, on the CPU; None where they are too large to try."""
    whole = Config()
    kinds = [type(layer) for layer in Model(whole, device="meta").layers]
    wanted = min(max(2, 1 + max(kinds.index(kind) for kind in kinds)), len(kinds))
    for count in (wanted, len(kinds)):
        config = replace(whole, n_layers=count, vocab_size=min(whole.vocab_size, VOCABULARY))
        try:
            planned = Model(config, device="meta")
        except ValueError:  # the layers were listed one by one
            continue
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if sum(parameter.numel() for parameter in planned.parameters()) > min(LARGEST, memory // BYTES):
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _stirred(Model(config)).eval()
    return None


def _stirred(model: LanguageModel) -> LanguageModel:
    """Random weights: none stays where it has no effect, such as 0 or 1; matrices too small to blow up roundings."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(0.5 * noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * noise)
    return model


def compared(model: LanguageModel, device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Compared]:
    """All cases in all dtypes but float16, whose range whole models leave."""
    length = min(65, model.context() // 2)
    cases = [
        Case(f"2 x {length}", "forward", (length, length)),
        Case("packed 0, 15, 33, 0, 1", "packed", (0, 15, 33, 0, 1)),
    ]
    if model.causal:
        cases.append(Case(f"3 x 20, then {STEPS} tokens", "decode", (20, 20, 20)))
    for dtype in (dtype for dtype in dtypes if dtype != torch.float16):
        single = copy.deepcopy(model).to(dtype)
        double = copy.deepcopy(single).double()
        tested = copy.deepcopy(single).to(device)
        for case in cases:
            want = _results(double, case, step=True)
            exact, rounded = _results(double, case), _results(single, case)
            errors = errors_of(rounded, exact)
            if dtype == torch.float32:  # kernels may make their products of three in tf32
                with RoundedProducts(dtype, None):
                    coarse = errors_of(_results(single, case), exact)
                errors = {name: max(error, coarse[name]) for name, error in errors.items()}
            steps = {name: rounding(x.dtype, want[name]) for name, x in rounded.items()}
            allowed = {name: SLACK * errors[name] + steps[name] for name in want}
            name = str(dtype).removeprefix("torch.")
            yield Compared(case.name, case.what, name, _results(tested, case), want, allowed)
            if case.what == "decode":
                tested.prepare_decode()  # from here on a token takes other kernels where there are some
                prepared = _results(tested, case)
                yield Compared(f"{case.name}, prepared", case.what, name, prepared, want, allowed)
            if dtype == torch.float32:  # 2^29 times as exact, with room for another order of the sums
                allowed = {n: e * 2**-22 + 2**-40 * largest(want[n]) for n, e in errors.items()}
                yield Compared(case.name, case.what, "float64", exact, want, allowed)


def _results(model: LanguageModel, case: Case, step: bool = False) -> Results:
    """Logits, and gradients of all parameters or the memory after decoding; "step" takes the loop over tokens."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(3)
    rows = 1 if case.what == "packed" else len(case.lengths)
    tokens = (
        sum(case.lengths) + 7 if case.what == "packed" else case.lengths[0] + STEPS * (case.what == "decode")
    )
    given = torch.randint(0, model.embedding.weight.shape[0], (rows, tokens), generator=generator).to(device)
    with form("step") if step else nullcontext():
        if case.what == "decode":
            return _decoded(model, given, case.lengths[0])
        cu_seqlens = None
        if case.what == "packed":
            borders = [sum(case.lengths[:n]) for n in range(len(case.lengths) + 1)]
            cu_seqlens = torch.tensor(borders, device=device)
        logits: Tensor = model(given, cu_seqlens=cu_seqlens)
        gradient = torch.randn(logits.shape, generator=generator).to(logits)
        inside = sum(case.lengths) if case.what == "packed" else tokens
        gradient[:, inside:] = 0
        names, parameters = zip(
            *(item for item in model.named_parameters() if item[1].requires_grad), strict=True
        )
        back = torch.autograd.grad(logits, parameters, gradient, allow_unused=True, materialize_grads=True)
    found = {"logits": logits.detach()[:, :inside]} | {f"d{n}": x for n, x in zip(names, back, strict=True)}
    return {name: x.cpu() for name, x in found.items()}


def _decoded(model: LanguageModel, tokens: Tensor, prompt: int) -> Results:
    """A prompt, then one token after the other."""
    with torch.no_grad():
        state = model.init_state(batch_size=tokens.shape[0], max_length=tokens.shape[1])
        logits = [model(tokens[:, :prompt], state=state)]
        for place in range(prompt, tokens.shape[1]):
            logits.append(model(tokens[:, place : place + 1], state=state))
    memory = {f"state {n}": x.cpu() for n, x in state.tensors().items() if x.is_floating_point()}
    return {"logits": torch.cat(logits, 1).cpu(), **memory}
