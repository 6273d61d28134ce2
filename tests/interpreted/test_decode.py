"""The decode kernel of every class, interpreted, against the definition in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from archc.data import data_folder
from archc.kernels.decode import decode_kernel
from archc.tiles.kind import RecurrenceKind
from archc.tiles.step import Memory, recurrence
from archc.tiles.torch_source import emit
from archc.tiles.triton_decode import decode_source
from archc.tiles.views import arguments
from tests.support.imports import imported
from tests.support.slow import mostly_slow
from tests.tiles.cases import all_kinds, label

HEADER = "import torch\nimport triton\nimport triton.language as tl\nfrom torch import Tensor\n\n\n"
STEPS = 4

# Factors, normalisers and constant decays call the decode step of another class.
KINDS = sorted({kind.core() for kind in all_kinds()}, key=label)
KINDS += [replace(kind, grouped=True) for kind in KINDS]
SAMPLE = [kind for kind in KINDS if not kind.grouped or kind.erase == "delta" and kind.read == "inclusive"]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ModuleType]:
    """A module from its text, once."""
    folder = tmp_path_factory.mktemp("decode") / "decode_modules"
    folder.mkdir()
    for name in ("__init__", "place", "tiling"):
        source = data_folder("templates") / "runtime" / f"{name}.py"
        (folder / f"{name}.py").write_text("" if name == "__init__" else source.read_text())
    found: dict[str, ModuleType] = {}

    def load(name: str, text: str) -> ModuleType:
        if name not in found:
            (folder / f"{name}.py").write_text(text)
            found[name] = imported(f"decode_modules.{name}", folder.parent)
        return found[name]

    return load


def inputs(
    kind: RecurrenceKind, B: int, heads: tuple[int, int, int], K: int, V: int, decay: float | None
) -> dict[str, Tensor]:
    """`STEPS` tokens in float64; `heads` of q, k and of v and the state."""
    generator = torch.Generator().manual_seed(0)
    Hq, Hk, H = heads
    count = {"q": Hq, "k": Hk, "w": Hk, "r": Hk}
    found = {}
    for argument in arguments(kind):
        rows = count.get(argument.name, H)
        if argument.axes in ("BTHK", "HKV") or argument.name == "decay":
            rows = count.get(argument.name, Hk if H % Hk == 0 else H)
        sizes = {"B": B, "T": STEPS, "H": rows, "K": K, "V": V}
        shape = [sizes[axis] for axis in argument.axes]
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if argument.name == "decay":
            x = -x.abs() if decay is None else torch.full_like(x, decay)
        elif argument.name == "rate":
            x = x.abs()
        elif argument.name == "beta":
            x = 1.99 * torch.sigmoid(x)
        elif argument.name in ("k", "w", "r"):
            x = torch.nn.functional.normalize(x, dim=-1)
        found[argument.name] = -x if argument.name == "w" else x
    return found


def steps(
    step: Callable[..., Tensor], given: dict[str, Tensor], kind: RecurrenceKind, S: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """All tokens through a decode step; the state is changed."""
    names = {argument.name: argument for argument in arguments(kind)}
    outputs = []
    for t in range(STEPS):
        token = [x[:, t] if names[name].per_token else x for name, x in given.items()]
        outputs.append(step(*token, S, scale))
    return torch.stack(outputs, 1), S


def rounded(given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors as a model in `dtype` has them: what feeds a decay stays float32."""
    return {name: x.to(torch.float32 if name in ("decay", "rate") else dtype) for name, x in given.items()}


def check(
    load: Callable[[str, str], ModuleType],
    kind: RecurrenceKind,
    B: int,
    heads: tuple[int, int, int],
    K: int,
    V: int,
    dtype: torch.dtype = torch.float32,
    decay: float | None = None,
    views: bool = False,
) -> None:
    """Kernel and torch form beside the loop in float64: the kernel errs as little as the torch form does."""
    kernels = load(f"{label(kind)}_kernels", HEADER + decode_source(kind))
    torch_form = load(label(kind), emit(kind, label(kind)))
    given = rounded(inputs(kind, B, heads, K, V, decay), dtype)
    S = torch.randn(B, heads[2], K, V, generator=torch.Generator().manual_seed(1))
    wide = {argument.public: given[argument.name].double() for argument in arguments(kind)}
    o, memory = recurrence(replace(kind, chunk=64), **wide, scale=0.7, memory=Memory(S.double()))  # type: ignore[arg-type]
    if views:  # as slices of one projection, and with rows that are far apart
        given = {
            name: torch.cat([x, x], -1)[..., : x.shape[-1]] if name != "rate" else x.mT.contiguous().mT
            for name, x in given.items()
        }
    with poisoned():
        found, S_found = steps(kernels.decode_step, given, kind, S.clone(), 0.7)
    known, S_known = steps(torch_form.decode_step, given, kind, S.clone(), 0.7)
    assert found.shape == known.shape and found.dtype == known.dtype
    # The sums over K are in another order here: one rounding of the largest sum of magnitudes.
    H = max(heads[0], heads[2])
    q = given["q"].double().abs().amax(1).repeat_interleave(H // heads[0], 1)
    sums = torch.einsum("bhk,bhkv->bhv", q, memory.S.abs().repeat_interleave(H // heads[2], 1))
    order = torch.finfo(torch.float32).eps * float(sums.max())
    for mine, theirs, exact in ((found, known, o), (S_found, S_known, memory.S)):
        size = float(exact.abs().max())
        bound = 1.5 * float((theirs - exact).abs().max()) + order + torch.finfo(mine.dtype).eps * size
        assert float((mine - exact).abs().max()) <= bound


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors hold NaN."""
    original = Tensor.new_empty

    def new_empty(self: Tensor, *size: Any, **options: Any) -> Tensor:
        return original(self, *size, **options).fill_(float("nan"))

    Tensor.new_empty = new_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.new_empty = original  # type: ignore[method-assign]


def some_heads(kind: RecurrenceKind) -> tuple[int, int, int]:
    return (6, 1, 2) if kind.grouped else (1, 2, 4)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, lambda kind: kind in SAMPLE), ids=label)
def test_every_class(load: Callable[[str, str], ModuleType], kind: RecurrenceKind) -> None:
    check(load, kind, 2, some_heads(kind), 24, 40)


@pytest.mark.parametrize("kind", [KINDS[0], *KINDS[3::9]], ids=label)
@pytest.mark.parametrize(
    ("K", "V"), mostly_slow([(24, 96), (96, 24), (128, 128), (16, 1)], lambda sizes: sizes != (128, 128))
)
def test_sizes(load: Callable[[str, str], ModuleType], kind: RecurrenceKind, K: int, V: int) -> None:
    check(load, kind, 1, some_heads(kind), K, V)


@pytest.mark.parametrize("kind", KINDS[2::6], ids=label)
@pytest.mark.parametrize("batch", mostly_slow([1, 5], 2))
def test_half_precision(load: Callable[[str, str], ModuleType], kind: RecurrenceKind, batch: int) -> None:
    check(load, kind, batch, some_heads(kind), 16, 24, torch.float16)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.decay != "none"][::3], ids=label)
@pytest.mark.parametrize("decay", [0.0, -50.0])
def test_extreme_decay(load: Callable[[str, str], ModuleType], kind: RecurrenceKind, decay: float) -> None:
    check(load, kind, 1, some_heads(kind), 16, 24, decay=decay)


@pytest.mark.parametrize("kind", mostly_slow(KINDS[1::5], 2), ids=label)
def test_slices_of_a_wider_tensor(load: Callable[[str, str], ModuleType], kind: RecurrenceKind) -> None:
    check(load, kind, 3, some_heads(kind), 16, 24, views=True)


def test_no_sequences(load: Callable[[str, str], ModuleType]) -> None:
    check_empty = load(f"{label(KINDS[0])}_kernels", HEADER + decode_source(KINDS[0]))
    given = rounded(inputs(KINDS[0], 0, (1, 1, 1), 16, 16, None), torch.float32)
    o, _ = steps(check_empty.decode_step, given, KINDS[0], torch.zeros(0, 1, 16, 16), 1.0)
    assert o.shape == (0, STEPS, 1, 16)


def test_a_state_that_is_a_view_is_refused(load: Callable[[str, str], ModuleType]) -> None:
    kind = KINDS[0]
    module = load(f"{label(kind)}_kernels", HEADER + decode_source(kind))
    given = rounded(inputs(kind, 1, (1, 1, 1), 16, 16, None), torch.float32)
    with pytest.raises(ValueError, match="contiguous"):
        steps(module.decode_step, given, kind, torch.zeros(1, 1, 16, 16).mT[..., :8], 1.0)


@contextmanager
def traffic() -> Iterator[dict[str, list[np.ndarray[Any, Any]]]]:
    """The addresses that kernels load and store, one array for each access."""
    from triton.runtime.interpreter import InterpreterBuilder

    found: dict[str, list[np.ndarray[Any, Any]]] = {"load": [], "store": []}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        found["load"].append(ptrs.data[mask.data])
        return load(self, ptrs, mask, *rest)

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        found["store"].append(ptrs.data[mask.data])
        return store(self, ptrs, value, mask, *rest)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = masked_load, masked_store
    try:
        yield found
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store


@pytest.mark.parametrize("kind", KINDS[::9], ids=label)
def test_the_state_is_read_once_and_written_once(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind
) -> None:
    B, (Hq, Hk, H), K, V = 3, some_heads(kind), 24, 200
    module = load(f"{label(kind)}_kernels", HEADER + decode_source(kind))
    given = rounded(inputs(kind, B, (Hq, Hk, H), K, V, None), torch.float32)
    S = torch.zeros(B, H, K, V)
    names = {argument.name: argument for argument in arguments(kind)}
    with traffic() as found:
        module.decode_step(*(x[:, 0] if names[name].per_token else x for name, x in given.items()), S, 1.0)
    first, last = S.data_ptr(), S.data_ptr() + S.nbytes
    for addresses in (np.concatenate([a.ravel() for a in found[way]]) for way in ("load", "store")):
        inside = addresses[(addresses >= first) & (addresses < last)]
        assert len(inside) == len(np.unique(inside)) == S.numel()


@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_the_described_kernel_is_the_launched_one(
    load: Callable[[str, str], ModuleType], kind: RecurrenceKind
) -> None:
    module = load(f"{label(kind)}_kernels", HEADER + decode_source(kind))
    kernel = decode_kernel(kind, 128, 128, "bf16", heads=4, queries=2)
    declared = list(module.decode_kernel.arg_names)
    assert [name for name in declared if name in kernel.signature] == list(kernel.signature)
    assert [name for name in declared if name in kernel.constants] == list(kernel.constants)
    assert len(declared) == len(kernel.signature) + len(kernel.constants)
    assert set(kernel.aligned) <= set(kernel.signature)
