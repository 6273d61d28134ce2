"""A state that decays entry by entry, by Triton kernels: values and gradients against the token loop in float64."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from archc.codegen.format import format_files
from archc.kernels.counting.counter import counting
from archc.kernels.elementwise import moved
from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from archc.tiles.triton_elementwise import TokenLaunch, elementwise_source
from tests.interpreted.judge import FLOAT32, Load, poisoned, rounded
from tests.support.imports import imported
from tests.support.slow import mostly_slow
from tests.tiles.cases import Case, defined, difference, label, make

torch.set_num_threads(1)
KEPT = 8  # tokens between two states that are kept, so that short sequences have several
KINDS = [
    RecurrenceKind("elementwise", read=read, decay_rate=rate)
    for rate in (True, False)
    for read in ("inclusive", "exclusive")
]
RATE, FULL = KINDS[0], KINDS[2]


def text_of(kind: RecurrenceKind, name: str, columns: int = 16) -> str:
    """The module of a class whose programs have so many value columns."""
    launch = TokenLaunch(columns, 4, 1)
    return elementwise_source(kind, name, launch, launch, kept_tokens=KEPT)


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    """The kernels of a class; `torch_form` is the module that has no kernels."""

    def load(kind: RecurrenceKind, torch_form: bool = False, columns: int = 16) -> ModuleType:
        name = f"{label(kind)}_{'torch' if torch_form else columns}"
        path = folder / f"{name}.py"
        if not path.exists():
            text = emit(kind, name) if torch_form else text_of(kind, name, columns)
            path.write_text(format_files({path.name: text})[path.name])
        return imported(f"{folder.name}.{name}", folder.parent)

    return load


def cotangents(case: Case) -> tuple[Tensor, Tensor]:
    """Random gradients of the outputs inside sequences and of the final states."""
    generator = torch.Generator().manual_seed(1)
    v, state = case.tensors["v"], case.memory["s"]
    do = torch.randn(*v.shape[:2], state.shape[1], v.shape[3], generator=generator)
    if case.cu_seqlens is not None:
        do[:, case.cu_seqlens[-1] :] = 0
    return do.half().double(), torch.randn(state.shape, generator=generator).double()


def expected(case: Case) -> list[Tensor]:
    """Outputs, final states and gradients of all arguments and of the initial states, by definition."""
    o, memory = defined(case)
    do, dfinal = cotangents(case)
    total = (o * do).sum() + (memory["s"] * dfinal).sum()
    back = torch.autograd.grad(total, case.leaves(), allow_unused=True, materialize_grads=True)
    return [o.detach(), memory["s"].detach(), *back]


def found(module: ModuleType, case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The same by a module's form over chunks; decays and states are float32."""
    given = [x.detach().to(torch.float32 if name in FLOAT32 else dtype) for name, x in case.tensors.items()]
    borders = None if case.cu_seqlens is None else torch.tensor(case.cu_seqlens)
    do, dfinal = cotangents(case)
    o, final, *rest = module.chunk_forward(*given, case.memory["s"].detach().float(), borders, case.scale)
    back = module.chunk_backward(do.to(dtype), dfinal.float(), *given, borders, *rest, case.scale)
    return [o, final, *back]


def check(load: Load, case: Case, dtype: torch.dtype = torch.float32) -> None:
    """The kernels err at most a few times what the torch form errs, which has the same sums in another order.

    Both compute in float32 and round their results; an exponential that is off in its last bit is so for every token.
    """
    case = rounded(case, dtype)
    wanted = expected(case)
    with poisoned():
        ours = found(load(case.kind), case, dtype)
    theirs = found(load(case.kind, torch_form=True), case, dtype)
    for name, mine, other, exact in zip(["o", "final", *case.names()], ours, theirs, wanted, strict=True):
        assert mine.shape == exact.shape and mine.dtype == other.dtype, name
        assert mine.isfinite().all(), name
        off = difference(mine.double(), exact)
        least = torch.finfo(mine.dtype).eps if mine.dtype != torch.float32 else 2**-20
        limit = 8 * difference(other.double(), exact) + least
        assert off <= limit, (name, off, limit)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    mostly_slow(
        itertools.product(KINDS, (torch.float32, torch.float16)), lambda case: case == (KINDS[1], torch.half)
    ),
    ids=lambda value: label(value) if isinstance(value, RecurrenceKind) else str(value)[6:],
)
def test_rows(kind: RecurrenceKind, dtype: torch.dtype, load: Load) -> None:
    """Two pieces, the last one with a rest; two blocks of value columns; shared heads."""
    check(load, make(kind, 14, K=5, V=20, batch=1, heads=(2, 1, 2)), dtype)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, 3), ids=label)
def test_packed(kind: RecurrenceKind, load: Load) -> None:
    """Sequences of one token, none, a few, and two pieces; tokens behind the last one; a narrow state."""
    check(load, make(kind, 24, (0, 1, 1, 5, 22), K=16, V=8, heads=(1, 1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(1, 2, 4), (4, 2, 1)])
@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_shared_heads(kind: RecurrenceKind, heads: tuple[int, int, int], load: Load) -> None:
    check(load, make(kind, 11, K=16, V=16, batch=1, heads=heads))


@pytest.mark.parametrize(
    ("kind", "decay"),
    mostly_slow([(RATE, 0.0), (RATE, -50.0), (FULL, 0.0), (FULL, -50.0)], lambda case: case == (RATE, -50.0)),
    ids=lambda value: label(value) if isinstance(value, RecurrenceKind) else str(value),
)
def test_decays(kind: RecurrenceKind, decay: float, load: Load) -> None:
    """No decay, and one so strong that its own gradient is nothing."""
    check(load, make(kind, 14, K=16, V=16, decay=decay, batch=1, heads=(1, 1, 1)))


@pytest.mark.parametrize("kind", mostly_slow([RATE, FULL], lambda kind: kind == RATE), ids=label)
def test_the_gradient_of_a_strong_decay(kind: RecurrenceKind, load: Load) -> None:
    """Channels that keep, lose half, and lose nearly all: no small gradient is the rest of larger numbers."""
    case = make(kind, 11, K=16, V=16, batch=1, heads=(1, 1, 1))
    channel_V = torch.arange(16)
    case.tensors["decay"].data[:] = torch.tensor([0.0, -0.7, -20.0, -80.0])[channel_V % 4].double()
    if kind.decay_rate:
        case.tensors["decay_rate"].data[:] = 1.0
    case = rounded(case, torch.float32)
    at = 2 + case.names().index("decay")
    gradient, exact = found(load(kind), case, torch.float32)[at], expected(case)[at]
    for strength in range(4):  # each on its own scale, down to e^-80
        mine, theirs = (x[..., channel_V % 4 == strength].double() for x in (gradient, exact))
        assert (mine - theirs).abs().max() < 2**-14 * theirs.abs().max()


def test_without_states_and_with_an_expanded_gradient(load: Load) -> None:
    """What `sum().backward()` of a call without a state sends: one number, expanded."""
    case, module = rounded(make(RATE, 5, K=16, V=16, batch=1, heads=(1, 1, 1)), torch.float32), load(RATE)
    given = [x.detach().float() for x in case.tensors.values()]
    o, final, *kept = module.chunk_forward(*given, None, None, 1.0)
    zeros = torch.zeros_like(case.memory["s"]).float()
    assert torch.equal(o, module.chunk_forward(*given, zeros, None, 1.0)[0])
    one = torch.ones(()).expand(o.shape)
    for mine, other in zip(
        module.chunk_backward(one, zeros, *given, None, *kept, 1.0),
        module.chunk_backward(one.clone(), zeros, *given, None, *kept, 1.0),
        strict=True,
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("(groups - 1 - later) * GROUP", "later * GROUP"),
        pytest.param("dS_KV *= share_KV", "dS_KV *= 1", marks=pytest.mark.slow),
        pytest.param("dq + block", "dq + 0 * block", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_line_is_found(line: str, wrong: str, folder: Path) -> None:
    """One place of the kernels changed: some gradient is far off."""
    name = f"wrong_{abs(hash(line))}"
    text = text_of(RATE, name)
    assert line in text
    (folder / f"{name}.py").write_text(text.replace(line, wrong))
    case = rounded(make(RATE, 11, K=16, V=32, batch=1, heads=(1, 1, 1)), torch.float32)
    ours = found(imported(f"{folder.name}.{name}", folder.parent), case, torch.float32)
    pairs = zip(ours, expected(case), strict=True)
    assert max(difference(mine.double().nan_to_num(1e9), exact) for mine, exact in pairs) > 1e-2


@pytest.mark.parametrize(
    ("kind", "columns"), mostly_slow(itertools.product(KINDS, (8, 16)), lambda case: case == (RATE, 16))
)
def test_the_bytes_are_those_of_the_plan(kind: RecurrenceKind, columns: int, load: Load) -> None:
    """Launch by launch and to the byte, between two lengths that a state is kept for; then the sums over blocks."""
    module, counted = load(kind, columns=columns), []
    for T in (KEPT, 2 * KEPT):
        case = make(kind, T, K=16, V=16, batch=1, heads=(1, 1, 1))
        given = [
            x.detach().to(torch.float32 if n in FLOAT32 else torch.half) for n, x in case.tensors.items()
        ]
        do = torch.ones(1, T, 1, 16).half()
        with counting() as counts:
            _, final, states = module.chunk_forward(*given, None, None, 1.0)
            module.chunk_backward(do, final, *given, None, states, 1.0)
        counted.append(counts)
    short, long = ({launch.name: launch.distinct for launch in counts.launches} for counts in counted)
    plan = moved(kind, 16, 16, columns, kept_tokens=KEPT)
    assert {name: (long[name] - short[name]) / KEPT for name in long} == {n: plan[n] for n in long}
    assert (counted[1].moved_by_others - counted[0].moved_by_others) / KEPT == plan["sums"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RATE, FULL], ids=label)
def test_what_is_read_again_is_less_than_what_is_read(kind: RecurrenceKind, folder: Path) -> None:
    """Blocks as wide as they are launched with: no more than twice the distinct bytes."""
    name = f"wide_{label(kind)}"
    launch = TokenLaunch(128 if kind.decay_rate else 16, 8, 1)
    (folder / f"{name}.py").write_text(elementwise_source(kind, name, launch, launch))
    module = imported(f"{folder.name}.{name}", folder.parent)
    case = make(kind, 64 if kind.decay_rate else 16, K=16, V=128, batch=1, heads=(1, 1, 1))
    given = [x.detach().to(torch.float32 if n in FLOAT32 else torch.half) for n, x in case.tensors.items()]
    with counting() as ahead:
        o, final, states = module.chunk_forward(*given, None, None, 1.0)
    with counting() as behind:
        module.chunk_backward(torch.ones_like(o), final, *given, None, states, 1.0)
    assert ahead.requested <= 2 * ahead.distinct and behind.requested <= 2 * behind.distinct


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RATE, FULL], ids=label)
def test_the_operation_is_one(kind: RecurrenceKind, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes without values, gradients, no aliases: as torch asks of an operation."""
    name = f"operation_{label(kind)}"
    (folder / f"{name}.py").write_text(emit(kind, name, kernel_sizes=[(16, 16)], reverse_kernels=True))
    launch = TokenLaunch(16, 4, 1)
    (folder / f"{name}_kernels.py").write_text(elementwise_source(kind, f"{name}_kernels", launch, launch))
    module = imported(f"{folder.name}.{name}", folder.parent)
    monkeypatch.setattr(module, "_has_kernels", lambda q, v: True)
    module.chunk.register_kernel("cpu")(module._chunk_on_gpu)
    module.chunk_reverse.register_kernel("cpu")(module._chunk_reverse_on_gpu)
    given, longer = (
        [x.detach().float() for x in make(kind, T, K=16, V=16, batch=1, heads=(1, 1, 1)).tensors.values()]
        for T in (2, 70)
    )
    # The longer one keeps several states.
    torch.library.opcheck(module.chunk, (*longer, None, None, 1.0), test_utils="test_faketensor")
    given = [x.requires_grad_() for x in given]
    torch.library.opcheck(module.chunk, (*given, None, None, 1.0))
