"""What recurrence kernels move, counted exactly, beside what they have to move and the limits of the ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType

import pytest
import torch
from torch import Tensor

from archc.kernels.bytes import (
    Minimum,
    Spent,
    exceeded,
    limits,
    minimum,
    planned,
    planned_by_channel,
    planned_by_head,
    planned_by_value,
    spent,
)
from archc.kernels.counting.counted import Counted, Launch
from archc.kernels.counting.counter import counting
from archc.kernels.work import work_of
from archc.tiles.costs import count
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import SEGMENT
from archc.tiles.triton_channel_reverse import ChannelLaunch, channel_reverse_source, has_channel_reverse
from archc.tiles.triton_decode import decode_source
from archc.tiles.triton_reverse import ReverseLaunch, reverse_source
from archc.tiles.triton_source import Launch as Cut
from archc.tiles.triton_source import kernels
from archc.tiles.triton_spans_back import ahead_by_channel, ahead_by_head, ahead_by_value
from archc.tiles.triton_value_reverse import ValueLaunch, has_value_reverse, value_reverse_source
from archc.tiles.views import arguments
from tests.support.imports import imported
from tests.support.slow import mostly_slow
from tests.tiles.cases import all_kinds, label

HEADER = "import torch\nimport triton\nimport triton.language as tl\nfrom torch import Tensor\n\n\n"
CLASSES = sorted({kind.core() for kind in all_kinds()}, key=label)
CHUNKED = [replace(kind, chunk=16) for kind in CLASSES if form_of(kind).form == "chunk"]
PLAIN = [kind for kind in CHUNKED if kind.read == "inclusive" and kind.erase_from == "decayed"]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ModuleType]:
    """A module from its text."""
    folder = tmp_path_factory.mktemp("bytes")

    def load(name: str, text: str) -> ModuleType:
        (folder / f"{name}.py").write_text(text)
        return imported(name, folder)

    return load


def inputs(kind: RecurrenceKind, T: int, K: int = 128, V: int = 128, H: int = 1) -> list[Tensor]:
    """Arguments in float16, which has as many bytes as bfloat16; decays are float32."""
    sizes = {"B": 1, "T": T, "H": H, "K": K, "V": V}
    found = []
    for argument in arguments(kind):
        x = torch.randn([sizes[axis] for axis in argument.axes], generator=torch.Generator().manual_seed(T))
        if argument.name in ("decay", "rate"):
            x = 0.1 * (x.abs() if argument.name == "rate" else -x.abs())
        else:
            x = (x.sigmoid() if argument.name == "beta" else torch.nn.functional.normalize(x, dim=-1)).half()
        found.append(x)
    return found


@pytest.mark.parametrize("kind", CLASSES, ids=label)
def test_the_minimum_is_what_the_costs_say(kind: RecurrenceKind) -> None:
    costs = count(kind, 128, 64)
    assert minimum(kind, 128, 64) == Minimum(costs.forward.bytes, costs.backward.bytes)
    assert limits(kind, "walk").forward < limits(kind, "chunks").forward


def test_the_minimum_of_shared_heads_and_other_types() -> None:
    kind = RecurrenceKind(decay="head", erase="delta")
    inputs = 2 * 128 / 4 + 2 * 128 / 4 + 2 * 128 + 4 + 4
    found = minimum(
        kind, 128, 128, heads={"q": 2, "k": 2, "v": 8, "decay": 8, "beta": 8}, itemsizes={"beta": 4}
    )
    assert found == Minimum(inputs + 256, 2 * inputs + 256)


def test_what_a_sequence_costs_once_vanishes_between_two_lengths() -> None:
    def run(tokens: int) -> Counted:
        launch = Launch(100 * tokens + 7, 0, 50 * tokens + 7, 0, flop=3 * tokens, exponentials=tokens)
        return Counted([launch])

    found = spent(run(64), run(192), 128, ([torch.empty(8)], [torch.empty(8 + 32)]))
    assert found == Spent(distinct=50, requested=100, flop=3, exponentials=1, saved=1)


def test_every_limit_is_named_when_it_is_missed() -> None:
    kind = RecurrenceKind(decay="head", erase="delta")
    least, costs = minimum(kind, 128, 128), count(kind, 128, 128)
    good = Spent(1.7 * least.forward, 3.3 * least.forward, 1.2 * costs.forward.flops, 0, 399)
    assert exceeded(kind, 128, 128, good, None) == []
    bad = Spent(1.9 * least.forward, 3.9 * least.forward, 1.4 * costs.forward.flops, 0, 401)
    assert exceeded(kind, 128, 128, bad, None) == [
        "forward: distinct bytes over the minimum 1.90, at most 1.80",
        "forward: requested bytes over distinct 2.05, at most 2.00",
        "forward: FLOP over the chunk form's 1.40, at most 1.30",
        "forward: saved bytes 401.00, at most 400.00",
    ]


@pytest.mark.parametrize(("K", "V"), [(128, 64), (20, 12)])
@pytest.mark.parametrize("kind", CLASSES, ids=label)
def test_a_decode_step_moves_its_arguments_and_the_state_once(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind, K: int, V: int
) -> None:
    H = 3
    kernels = load(f"{label(kind)}_decode", HEADER + decode_source(kind))
    given = [
        (x[:, 0] if argument.per_token else x).contiguous()
        for x, argument in zip(inputs(kind, 1, K, V, H), arguments(kind))
    ]
    S = torch.zeros(1, H, K, V)
    with counting() as counted:
        o = kernels.decode_step(*given, S, 1.0)
    assert counted.others == []
    assert counted.distinct == sum(x.nbytes for x in [*given, o]) + 2 * S.nbytes


# The limits, at K = V = 128 and one head: all that counts is per token and head. The lengths are one chunk, and as
# many more as a state is kept for: the difference is what a long sequence costs.

SCALAR = RecurrenceKind("head")
GATED_DELTA = RecurrenceKind("head", "delta")
CHANNEL = RecurrenceKind("key")
CHANNEL_DELTA = RecurrenceKind("key", "delta")
PAIR = RecurrenceKind("head", "pair", "previous")
CHANNEL_PAIR = RecurrenceKind("key", "pair", "previous")


def emitted(
    load: Callable[[str, str], ModuleType],
    kind: RecurrenceKind,
    K: int,
    V: int,
    columns: int,
    segment: int = SEGMENT,
    halves: bool = False,
    spans: bool = False,
) -> ModuleType:
    """The kernels over chunks of a class; their reverse as well, if there is one, and whether it walks in spans."""
    walk = Cut(columns, 8, 1, halves=halves)
    launches = {"prepare": Cut(0, 4, 1), "walk": walk, "carry": Cut(columns, 4, 1)}
    name = (
        f"{label(kind)}_{K}_{V}_{columns}_{segment}{'_halves' if halves else ''}{'_spans' if spans else ''}"
    )
    reverse = ""
    if kind.decay in ("none", "head"):
        channels = {"none": 128, "delta": 64, "pair": 64 if kind.decay == "none" else 32}[kind.erase]
        reverse = reverse_source(
            kind, ReverseLaunch(columns, (8, 1), (8, 1), channels), ahead_by_head(kind) if spans else None
        )
    elif has_channel_reverse(kind):
        channels = 16 if kind.erase == "pair" else 32
        reverse = channel_reverse_source(
            kind, ChannelLaunch(columns, channels, (8, 1), (8, 1)), ahead_by_channel(kind) if spans else None
        )
    elif has_value_reverse(kind):
        reverse = value_reverse_source(
            kind,
            ValueLaunch(columns, (32, 8, 1), (8, 1), (8, 1)),
            ahead_by_value(kind) if spans else None,
        )
    return load(f"{name}_kernels", kernels(kind, name, launches, segment=segment, reverse=reverse))


IN_SPANS = [replace(kind, chunk=16) for kind in (SCALAR, GATED_DELTA, RecurrenceKind("value"))]
IN_SPANS_BACK = [*IN_SPANS, *(replace(kind, chunk=16) for kind in (CHANNEL, CHANNEL_DELTA, CHANNEL_PAIR))]
Spend = Callable[[RecurrenceKind, str], Spent]


@pytest.fixture(scope="module")
def spend(load: Callable[[str, str], ModuleType]) -> Spend:
    """What a class's forward or backward spends."""

    @cache
    def run(kind: RecurrenceKind, direction: str) -> Spent:
        module = emitted(load, kind, 128, 128, 128)
        more = module.SEGMENT * module.CHUNK
        runs, kept = [], []
        for T in (module.CHUNK, module.CHUNK + more):
            given = inputs(kind, T)
            with counting() as ahead:
                o, final, *saved = module.chunk_forward(*given, None, None, 0.1)
            if direction == "forward":
                runs.append(ahead)
                kept.append(saved)
                continue
            do, dfinal = torch.ones_like(o), torch.zeros_like(final)
            with counting() as behind:
                module.chunk_backward(do, dfinal, *given, None, *saved, 0.1)
            runs.append(behind)
        return spent(*runs, more, tuple(kept) if kept else ((), ()))

    return run


# Classes that the limits of docs/gpu.md name.
LIMITED = [
    "scalar decay",
    "gated delta",
    "channel decay",
    "gated delta with channel decay",
    "two rows with that",
]


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (SCALAR, ("distinct", "requested", "FLOP", "saved")),
        (GATED_DELTA, ("distinct", "requested", "FLOP", "saved")),
        pytest.param(CHANNEL, ("distinct", "requested", "FLOP", "saved"), marks=pytest.mark.slow),
        pytest.param(CHANNEL_DELTA, ("distinct", "requested", "FLOP", "saved"), marks=pytest.mark.slow),
        pytest.param(CHANNEL_PAIR, ("distinct", "requested", "FLOP", "saved"), marks=pytest.mark.slow),
    ],
    ids=LIMITED,
)
def test_the_forward_keeps_its_limits(spend: Spend, kind: RecurrenceKind, kept: tuple[str, ...]) -> None:
    missed = exceeded(kind, 128, 128, spend(kind, "forward"), None)
    assert [line for line in missed if line.removeprefix("forward: ").startswith(kept)] == []


@pytest.mark.parametrize("kind", mostly_slow([SCALAR, GATED_DELTA], 2), ids=["scalar decay", "gated delta"])
def test_the_backward_keeps_its_limits(spend: Spend, kind: RecurrenceKind) -> None:
    assert exceeded(kind, 128, 128, None, spend(kind, "backward")) == []


@pytest.mark.parametrize(
    "kind",
    [CHANNEL, CHANNEL_DELTA, CHANNEL_PAIR],
    ids=["channel decay", "gated delta with channel decay", "an erase of two rows with channel decay"],
)
def test_decays_by_channel_keep_their_limits_of_bytes(kind: RecurrenceKind) -> None:
    """What is planned at full size; that it is what is moved, tests at smaller sizes say."""
    most, least = limits(kind, "walk"), minimum(kind, 128, 128)
    assert sum(planned(kind, 128, 128).values()) <= most.forward * least.forward
    assert sum(planned_by_channel(kind, 128, 128).values()) <= most.backward * least.backward


@pytest.mark.parametrize(
    ("kind", "saved", "ratios"),
    [(SCALAR, 32, "1.02 / 2.05"), (GATED_DELTA, 672, "1.69 / 2.31")],
    ids=["scalar decay", "gated delta"],
)
def test_twice_the_value_columns_of_a_program(kind: RecurrenceKind, saved: int, ratios: str) -> None:
    """K = 128, V = 256, as docs/gpu.md says: the parts of two blocks go through memory in the type of q and k."""
    least = minimum(kind, 128, 256)
    forward = sum(planned(kind, 128, 256).values()) / least.forward
    backward = sum(planned_by_head(kind, 128, 256, 128, 64 if kind.erase == "delta" else 128).values())
    assert f"{forward:.2f} / {backward / least.backward:.2f}" == ratios
    states = 4 * 128 * 256 / (SEGMENT * 64)
    assert saved == states + (2 * 256 + 2 * 64 if kind.erase == "delta" else 0)
    assert kind == SCALAR or backward <= limits(kind, "walk").backward * least.backward


@pytest.mark.parametrize(
    ("kind", "channels", "ratios"),
    [
        (SCALAR, 128, "1.77 / 2.03"),
        (GATED_DELTA, 64, "2.77 / 2.83"),
        (CHANNEL, 0, "2.36 / 2.33"),
        (CHANNEL_DELTA, 0, "3.18 / 2.78"),
        (CHANNEL_PAIR, 0, "3.13 / 2.84"),
    ],
    ids=LIMITED,
)
def test_the_shortest_spans_keep_the_limits_of_a_form_parallel_over_chunks(
    kind: RecurrenceKind, channels: int, ratios: str
) -> None:
    """Spans of 16 chunks, with which most programs run at once; as docs/gpu.md says."""
    most, least = limits(kind, "chunks"), minimum(kind, 128, 128)
    forward = sum(planned(kind, 128, 128, span=16).values()) / least.forward
    if kind.decay == "key":
        moved = planned_by_channel(kind, 128, 128, span=16)
    else:
        moved = planned_by_head(kind, 128, 128, 128, channels, span=16)
    backward = sum(moved.values()) / least.backward
    assert forward <= most.forward and backward <= most.backward
    assert f"{forward:.2f} / {backward:.2f}" == ratios


@pytest.mark.parametrize(("K", "ratios"), [(64, "2.38 / 2.47"), (96, "2.21 / 2.34"), (128, "2.13 / 2.28")])
def test_two_scores_in_a_square(K: int, ratios: str) -> None:
    """An erase of two rows with a decay by channel, as docs/gpu.md says: four scores, of which two share a square."""
    least = minimum(CHANNEL_PAIR, K, K)
    forward = sum(planned(CHANNEL_PAIR, K, K).values()) / least.forward
    backward = sum(planned_by_channel(CHANNEL_PAIR, K, K).values()) / least.backward
    assert f"{forward:.2f} / {backward:.2f}" == ratios


BY_HEAD = [  # without decay and erase, the second walk is handed q unread
    replace(kind, chunk=16)
    for kind in (GATED_DELTA, SCALAR, RecurrenceKind(erase="delta"), RecurrenceKind("head", "pair"))
]


@pytest.mark.parametrize("kind", mostly_slow(BY_HEAD, 2), ids=label)
def test_the_backward_by_head_moves_what_is_planned(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind
) -> None:
    """Launch by launch and to the byte: three blocks of value columns and two of key channels."""
    name = f"{label(kind)}_blocks"
    launches = {"prepare": Cut(0, 4, 1), "walk": Cut(16, 4, 1)}
    reverse = reverse_source(kind, ReverseLaunch(16, (4, 1), (4, 1), 16, 16, several=True))
    module = load(f"{name}_kernels", kernels(kind, name, launches, segment=1, reverse=reverse))
    found: list[dict[str, int]] = []
    for T in (16, 32):
        given = inputs(kind, T, 32, 48)
        o, final, *saved = module.chunk_forward(*given, None, None, 0.1)
        do, dfinal = torch.ones_like(o), torch.zeros_like(final)
        with counting() as counted:
            module.chunk_backward(do, dfinal, *given, None, *saved, 0.1)
        moved = {launch.name: launch.distinct for launch in counted.launches}
        found.append({**moved, "sums": counted.moved_by_others})
    each = {what: (found[1][what] - found[0][what]) / 16 for what in found[0]}
    assert each == planned_by_head(kind, 32, 48, 16, 16, segment=1)


def test_the_backward_by_value_channel_keeps_the_limit_of_chunks() -> None:
    """Its pairs have a launch of their own, so that it moves more than walks alone would."""
    kind = RecurrenceKind("value")
    ratio = sum(planned_by_value(kind, 128, 64).values()) / minimum(kind, 128, 64).backward
    assert f"{ratio:.2f}" == "2.81"  # as docs/gpu.md says
    assert limits(kind, "walk").backward < ratio <= limits(kind, "chunks").backward


BY_CHANNEL = [kind for kind in CHUNKED if has_channel_reverse(kind) or has_value_reverse(kind)]


def test_an_erase_of_two_rows_under_a_decay_per_head_keeps_its_limits_of_bytes() -> None:
    """What is planned at full size, as docs/gpu.md says."""
    most, least = limits(PAIR, "walk"), minimum(PAIR, 128, 128)
    forward = sum(planned(PAIR, 128, 128).values()) / least.forward
    backward = sum(planned_by_head(PAIR, 128, 128, 128, 32).values()) / least.backward
    assert f"{forward:.2f} / {backward:.2f}" == "1.68 / 2.34"
    assert forward <= most.forward
    assert backward <= most.backward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "over"),
    [
        (CHANNEL, []),
        (CHANNEL_DELTA, []),
        (CHANNEL_PAIR, ["backward: requested bytes over distinct 2.47, at most 2.00"]),
        (PAIR, ["backward: FLOP over the chunk form's 1.57, at most 1.30"]),
    ],
    ids=["channel decay", "gated delta with channel decay", "two rows with that", "an erase of two rows"],
)
def test_the_flop_of_other_backwards(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind, over: list[str]
) -> None:
    """At full size, what one chunk more costs; with a state for every chunk, bytes are not those of a long sequence.

    An erase of two rows is over a limit, as docs/gpu.md says: its second walk has few key channels a program.
    """
    module = emitted(load, kind, 128, 128, 128, segment=1)
    runs = []
    for T in (module.CHUNK, 2 * module.CHUNK):
        given = inputs(kind, T)
        o, final, *saved = module.chunk_forward(*given, None, None, 0.1)
        with counting() as counted:
            module.chunk_backward(torch.ones_like(o), final, *given, None, *saved, 0.1)
        runs.append(counted)
    missed = exceeded(kind, 128, 128, None, spent(*runs, module.CHUNK))
    assert [line for line in missed if line.startswith(("backward: FLOP", "backward: requested"))] == over


@pytest.mark.parametrize("kind", mostly_slow(BY_CHANNEL, lambda kind: kind == BY_CHANNEL[0]), ids=label)
def test_the_backward_by_channel_moves_what_is_planned(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind
) -> None:
    """Launch by launch and to the byte, with a state for every chunk."""
    module = emitted(load, kind, 16, 32, 32, segment=1)
    launches = []
    for T in (16, 32):
        given = inputs(kind, T, 16, 32)
        o, final, *saved = module.chunk_forward(*given, None, None, 0.1)
        with counting() as counted:
            module.chunk_backward(torch.ones_like(o), final, *given, None, *saved, 0.1)
        launches.append({launch.name: launch for launch in counted.launches})
    short, long = launches
    found = {name: (long[name].distinct - short[name].distinct) / 16 for name in long}
    plan = planned_by_value if has_value_reverse(kind) else planned_by_channel
    assert found == plan(kind, 16, 32, segment=1)


@pytest.mark.slow
def test_the_backward_by_channel_reads_its_values_for_every_block_of_keys(
    load: Callable[[str, str], ModuleType],
) -> None:
    """Four blocks of keys, as there are at full size: no more than twice the distinct bytes."""
    kind = replace(CHANNEL_DELTA, chunk=16)
    module = emitted(load, kind, 128, 128, 128)
    given = inputs(kind, 32)
    o, final, *saved = module.chunk_forward(*given, None, None, 0.1)
    with counting() as counted:
        module.chunk_backward(torch.ones_like(o), final, *given, None, *saved, 0.1)
    assert counted.distinct < counted.requested <= 2 * counted.distinct


@pytest.mark.parametrize("kind", mostly_slow(PLAIN, 2), ids=label)
def test_kernels_stay_inside_their_arguments(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind
) -> None:
    """Ragged and empty sequences beside one another, value columns in two blocks: no access outside, no race."""
    module = emitted(load, kind, 16, 32, 16)
    borders = torch.tensor([0, 0, 5, 26])
    given = inputs(kind, 32, 16, 32)
    state = torch.zeros(3, 1, 16, 32)
    with counting() as counted:
        o, final, *saved = module.chunk_forward(*given, state, borders, 0.1)
    assert counted.requested <= 2 * counted.distinct
    with counting():
        module.chunk_backward(torch.ones_like(o), final, *given, borders, *saved, 0.1)


@pytest.mark.parametrize("kind", CHUNKED, ids=label)
def test_the_forward_moves_what_is_planned(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind
) -> None:
    """Launch by launch and to the byte, with a state for every chunk."""
    moved_as_planned(emitted(load, kind, 16, 32, 32, segment=1), kind, (16, 32), None)


HALVED = [replace(kind, chunk=16) for kind in (RecurrenceKind("head", "pair"), GATED_DELTA)]


@pytest.mark.parametrize("kind", HALVED, ids=label)
def test_so_does_a_walk_with_its_state_in_halves(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind
) -> None:
    """Under an erase of two rows and a decay it is handed the scores; the lower bounds count them there as well."""
    moved_as_planned(emitted(load, kind, 32, 32, 32, segment=1, halves=True), kind, (16, 32), None, 32, True)
    for role, most in planned(kind, 32, 32, halves=True).items():
        work, whole = (work_of(kind, role, 32, 32, halves=halves) for halves in (True, False))
        assert work is not None and whole is not None and work.bytes == most
        assert (work.bytes > whole.bytes) == (kind.erase == "pair")
        assert (work.flops > whole.flops) == (kind.erase == "pair" and role == "prepare")


@pytest.mark.parametrize("kind", mostly_slow(CHUNKED, lambda kind: kind in IN_SPANS), ids=label)
def test_spans_move_what_is_planned(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a span for every chunk."""
    module = emitted(load, kind, 16, 32, 32, segment=1)
    monkeypatch.setattr(module, "span_of", lambda *_: 16)
    moved_as_planned(module, kind, (32, 48), 1)


@pytest.mark.parametrize("kind", mostly_slow(IN_SPANS_BACK, lambda kind: kind == IN_SPANS_BACK[0]), ids=label)
def test_spans_on_the_way_back_move_what_is_planned(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launch by launch and to the byte, with a span and a state for every chunk."""
    module = emitted(load, kind, 16, 32, 32, segment=1, spans=True)
    launches = []
    for T in (32, 48):
        given = inputs(kind, T, 16, 32)
        o, final, *saved = module.chunk_forward(*given, None, None, 0.1)
        monkeypatch.setattr(module, "span_of", lambda *_: 16)
        with counting() as counted:
            module.chunk_backward(torch.ones_like(o), torch.zeros_like(final), *given, None, *saved, 0.1)
        monkeypatch.undo()
        launches.append({launch.name: launch for launch in counted.launches})
    short, long = launches
    found = {name: (long[name].distinct - short[name].distinct) / 16 for name in long}
    if kind.decay == "key":
        plan = planned_by_channel(kind, 16, 32, segment=1, span=1)
    elif kind.decay == "value":
        plan = planned_by_value(kind, 16, 32, segment=1, span=1)
    else:
        plan = planned_by_head(kind, 16, 32, 32, 128, segment=1, span=1)
        del plan["sums"]
    assert found == plan


def moved_as_planned(
    module: ModuleType,
    kind: RecurrenceKind,
    lengths: tuple[int, int],
    span: int | None,
    K: int = 16,
    halves: bool = False,
) -> None:
    """Between two lengths that are one chunk apart."""
    launches = []
    for T in lengths:
        given = inputs(kind, T, K, 32)
        with counting() as counted:
            module.chunk_forward(*given, None, None, 0.1)
        assert counted.others == []
        launches.append({launch.name: launch for launch in counted.launches})
    short, long = launches
    found = {name: (long[name].distinct - short[name].distinct) / 16 for name in long}
    assert found == planned(kind, K, 32, segment=1, span=span, halves=halves)
    # A tile may be read again rather than held.
    assert sum(launch.requested for launch in long.values()) <= 2 * sum(
        launch.distinct for launch in long.values()
    )
