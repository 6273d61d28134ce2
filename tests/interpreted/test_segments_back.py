"""The way back through sequences that are walked in several places at once: gradients are the same for all cuts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch

from archc.kernels.counting.counter import counting
from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from archc.tiles.triton_channel_reverse import ChannelLaunch, channel_reverse_source
from archc.tiles.triton_reverse import ReverseLaunch, reverse_source
from archc.tiles.triton_source import Launch, kernels
from archc.tiles.triton_spans_back import ahead_by_channel, ahead_by_head, ahead_by_value
from archc.tiles.triton_value_reverse import ValueLaunch, value_reverse_source
from tests.interpreted.judge import Load, agree
from tests.support.imports import imported
from tests.tiles.cases import label, make

torch.set_num_threads(1)
KINDS = [
    RecurrenceKind("none"),
    RecurrenceKind("head"),
    RecurrenceKind("none", "delta"),
    RecurrenceKind("head", "delta"),
    RecurrenceKind("head", "pair", "previous", "exclusive"),
    RecurrenceKind("key"),
    RecurrenceKind("key", read="exclusive"),
    RecurrenceKind("key", "delta"),
    RecurrenceKind("key", "pair", "previous"),
    RecurrenceKind("value"),
    RecurrenceKind("value", read="exclusive"),
]
QUICK = {
    RecurrenceKind("head", "delta"): (2, True),
    RecurrenceKind("key"): (1, False),
    RecurrenceKind("value"): (2, True),
}
RAGGED = (0, 0, 1, 17, 17, 88)  # sequences of 0, 1, 16, 0 and 71 tokens, and more tokens behind the last
CUTS = list(product((1, 2, 3, 100), (True, False)))  # chunks of a span, whether sequences are packed
COLUMNS = 16  # of values a program: two blocks of them


def reverse_text(kind: RecurrenceKind) -> str:
    """The backward of a class that walks in spans; chunks of a general erase stand in conditions, as on the B200."""
    cut, guarded = (4, 1), kind.erase == "pair"
    if kind.decay == "key":
        launch = ChannelLaunch(COLUMNS, 16, cut, cut, guarded)
        return channel_reverse_source(kind, launch, ahead_by_channel(kind))
    if kind.decay == "value":
        return value_reverse_source(kind, ValueLaunch(COLUMNS, (16, 4, 1), cut, cut), ahead_by_value(kind))
    launch = ReverseLaunch(COLUMNS, cut, cut, 16, 16, several=True, guarded=guarded)
    return reverse_source(kind, launch, ahead_by_head(kind))


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The kernels of a class, cut into spans of so many chunks; `torch_form` is the module that has no kernels."""

    def load(kind: RecurrenceKind, chunks: int = 0, torch_form: bool = False) -> ModuleType:
        name = f"{label(kind)}_{'torch' if torch_form else 'spans'}"
        launches = {
            "prepare": Launch(COLUMNS, 4, 1, channels=16), "walk": Launch(COLUMNS, 4, 1),
            "carry": Launch(COLUMNS, 4, 1),
        }  # fmt: skip
        made = kernels(kind, name, launches, precision="ieee", segment=2, reverse=reverse_text(kind))
        path = folder / f"{name}.py"
        if not path.exists():
            path.write_text(emit(kind, name) if torch_form else made)
        module = imported(f"{folder.name}.{name}", folder.parent)
        if not torch_form:
            monkeypatch.setattr(module, "span_of", lambda *_: chunks * module.CHUNK)
        return module

    return load


def cases() -> list[pytest.ParameterSet]:
    """Each class with one cut of its own in the slow tests, three of them with every change."""
    found = []
    for (row, kind), (column, cut) in product(enumerate(KINDS), enumerate(CUTS)):
        quick, slow = QUICK.get(kind) == cut, row % len(CUTS) == column
        marks = () if quick else pytest.mark.slow if slow else pytest.mark.library
        cut_label = f"{cut[0]}-{'packed' if cut[1] else 'rows'}"
        found.append(
            pytest.param(replace(kind, chunk=16), *cut, id=f"{label(kind)}-{cut_label}", marks=marks)
        )
    return found


@pytest.mark.parametrize(("kind", "chunks", "packed"), cases())
def test_all_segmentations_agree(kind: RecurrenceKind, chunks: int, packed: bool, load: Load) -> None:
    """Spans of one chunk, of two, three, or longer than a sequence; gradients of last states come from behind."""
    borders = RAGGED if packed else None
    case = make(kind, RAGGED[-1] + 5 if packed else 70, borders, heads=(2, 1, 2), K=16, V=24)
    if "decay" in case.tensors:
        case.tensors["decay"].data *= 0.1  # so that what comes back lasts for several spans
    with counting():  # which finds races, and what lies outside of tensors
        agree(load, case, torch.float32, 4, chunks=chunks)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_nothing_comes_back_through_decays_that_forget(kind: RecurrenceKind, load: Load) -> None:
    """Decays of -50 a token: what a span gives to the one before it is zero, not a difference."""
    case = make(replace(kind, chunk=16), 50, K=16, V=16, batch=1, heads=(1, 1, 1), decay=-50.0)
    agree(load, case, torch.float32, 4, chunks=1)
