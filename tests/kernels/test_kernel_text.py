"""How kernels of every class read: short, and launched on axes that are long enough."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import product

import pytest

from archc.codegen.format import format_files
from archc.kernels.recurrence import Use, chunked, source_of
from archc.kernels.targets import load_target
from archc.tiles.kind import RecurrenceKind
from archc.tiles.views import arguments
from tests.tiles.cases import all_kinds, label

LINES = 60
SIZES = ((128, 128), (256, 256), (64, 64))
FEW = [
    RecurrenceKind("head", "delta"),
    RecurrenceKind("key", "pair", "previous"),
    RecurrenceKind("head", "pair", "previous"),
    RecurrenceKind("head", normalize="max", log_input=True),
    RecurrenceKind("elementwise", decay_rate=True),
]


def sources(kinds: list[RecurrenceKind], target: str) -> Iterator[tuple[str, ast.Module]]:
    """The kernels of each class and size, as they stand in a package."""
    chip, texts = load_target(target), {}
    for kind, (K, V) in product(kinds, SIZES):
        use = Use(K, V, 4, {argument.name: 4 for argument in arguments(kind)}, None)
        text = source_of(kind, "made", [] if chunked(kind, use, chip) else [(K, V)], chip)
        texts[f"{label(kind)}_{K}.py"] = text
    for name, text in format_files(texts).items():
        yield name, ast.parse(text)


def check(kinds: list[RecurrenceKind], target: str) -> None:
    launches = 0
    for name, module in sources(kinds, target):
        for function in module.body:
            if not isinstance(function, ast.FunctionDef):
                continue
            lines = (function.end_lineno or 0) - function.body[0].lineno + 1
            assert lines <= LINES, f"{name}: {function.name} has {lines} lines"
            for call in ast.walk(function):
                if function.decorator_list or not isinstance(call, ast.Call):
                    continue
                if isinstance(call.func, ast.Subscript) and isinstance(call.func.slice, ast.Tuple):
                    # The second and the third axis end at 65,535: a product of sequences and heads may be more.
                    rest = [ast.unparse(axis) for axis in call.func.slice.elts[1:]]
                    assert not any("*" in axis for axis in rest), f"{name}: {ast.unparse(call.func)}"
                    launches += 1
    assert launches >= 2 * len(kinds)


def test_some_classes() -> None:
    check(FEW, "h100")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["h100", "a100", "b200"])
def test_all_classes(target: str) -> None:
    check(list(all_kinds()), target)
