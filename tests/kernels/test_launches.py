"""Which launches of a recurrence are compiled ahead of time."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import Literal

import pytest

from archc.kernels.compile import _reached, verify
from archc.kernels.fit import judge
from archc.kernels.kernel import Kernel
from archc.kernels.plan import kernels_of
from archc.kernels.recurrence import Use, chunked, recurrence_kernels
from archc.kernels.targets import Target, load_target
from archc.pipeline import graph_of
from archc.tiles.kind import RecurrenceKind
from archc.tiles.views import arguments
from tests.support.packages import SPECS

H100 = load_target("h100")


def launched(
    kind: RecurrenceKind, K: int = 128, V: int = 128, target: Target = H100
) -> dict[tuple[str, str], Kernel]:
    """Everything but the decode step, by role and case."""
    use = Use(K, V, 4, {argument.name: 4 for argument in arguments(kind)}, None)
    found = recurrence_kernels(kind, "made", [use], target)
    return {(kernel.role, kernel.case): kernel for kernel in found if kernel.role != "decode"}


def test_packed_sequences_that_continue_are_compiled_as_well() -> None:
    found = launched(RecurrenceKind("head", "delta"))
    for role in ("prepare", "walk"):
        plain, packed = found[role, ""], found[role, "packed"]
        assert not plain.constants["PACKED"] and packed.constants["PACKED"]
    assert not found["walk", ""].constants["INITIAL"] and found["walk", "packed"].constants["INITIAL"]


def test_the_case_stands_beside_the_name() -> None:
    fit = judge(launched(RecurrenceKind("head"))["walk", "packed"], H100, None, "3.7.1")
    assert fit.title == "walk (packed)"


@pytest.mark.parametrize(
    ("kind", "K", "spans"),
    [
        (RecurrenceKind("head"), 256, True),
        (RecurrenceKind("head", "delta"), 128, True),
        (RecurrenceKind("head", "delta"), 256, False),  # a matrix [K, K] beside the state is too large
        (RecurrenceKind("head", normalize="sum"), 64, True),
        (RecurrenceKind("head", normalize="max", log_input=True), 256, True),
        (RecurrenceKind("key", normalize="sum"), 64, False),
    ],
    ids=["no erase", "erase", "wide erase", "normaliser", "wide normaliser", "normaliser by channel"],
)
def test_which_classes_walk_in_spans(kind: RecurrenceKind, K: int, spans: bool) -> None:
    found = launched(kind, K)
    assert (("walk_ahead", "") in found) == (("carry", "") in found) == spans
    assert (("walk_back_ahead", "") in found) == (("carry", "back") in found) == spans
    assert ("def walk_ahead(" in found["walk", ""].source) == spans
    if spans:
        assert "MULTIPROCESSORS = 132" in found["walk", ""].source
        assert found["carry", ""].constants["PACKED"] and found["carry", ""].constants["INITIAL"]
        assert not found["carry", ""].constants["BACK"] and found["carry", "back"].constants["BACK"]


WIDE_PAIRS = [RecurrenceKind("key", "pair", "previous"), RecurrenceKind("head", "pair", "previous")]


@pytest.mark.parametrize("size", [192, 256])
@pytest.mark.parametrize("target", ["h100", "h200", "b200"])
@pytest.mark.parametrize("kind", WIDE_PAIRS, ids=lambda kind: kind.decay)
def test_an_erase_of_two_rows_has_large_heads_in_halves(kind: RecurrenceKind, target: str, size: int) -> None:
    """Scores come from `prepare`; chunks stand in a condition, out of which no accumulator is moved."""
    walk = launched(kind, size, size, load_target(target))["walk", ""]
    assert walk.constants["COLUMNS"] == 64 and "S2_VK" in walk.source
    squares = {"r_scores", "q_scores"}  # of a decay by key channel, two scores in each
    assert (squares if kind.decay == "key" else {"rk", "qk", "qw"}) <= walk.signature.keys()
    assert "if (start >= opening) & (start < closing):" in walk.source


@pytest.mark.parametrize(
    "target",
    [pytest.param("h100", marks=pytest.mark.slow), pytest.param("b200", marks=pytest.mark.library)],
)
@pytest.mark.parametrize("kind", WIDE_PAIRS, ids=lambda kind: kind.decay)
def test_the_walk_of_such_a_head_fits(kind: RecurrenceKind, target: str) -> None:
    """Whole, and without the condition, its accumulators were more than a B200 has room for."""
    found = load_target(target)
    (fit,) = verify([launched(kind, 256, 256, found)["walk", "packed"]], found)
    assert fit.fits, fit.verdict


def test_a_target_without_a_row_for_it_walks_sequences_whole() -> None:
    rows = tuple(row for row in H100.tiles if row["role"] != "carry")
    use = Use(128, 128, 4, {argument.name: 4 for argument in arguments(RecurrenceKind())}, None)
    found = recurrence_kernels(RecurrenceKind(), "made", [use], replace(H100, tiles=rows))
    assert not {"walk_ahead", "walk_back_ahead", "carry"} & {kernel.role for kernel in found}


@pytest.mark.parametrize(("rate", "K", "columns"), [(True, 16, 128), (True, 128, 16), (False, 256, 8)])
def test_a_walk_over_tokens_has_the_columns_that_fit(rate: bool, K: int, columns: int) -> None:
    """Both walks, dense and packed, and the sums over their blocks of value columns in float32."""
    found = launched(RecurrenceKind("elementwise", decay_rate=rate), K, 512)
    assert list(found) == [(role, case) for role in ("walk", "walk_back") for case in ("", "packed")]
    back = found["walk_back", ""]
    assert back.constants["COLUMNS"] == columns and not back.matrix
    assert back.signature["dq"] == back.signature["ddecay"] == "*fp32" and back.signature["dv"] == "*bf16"
    alone = launched(RecurrenceKind("elementwise"), 16, 16)["walk_back", ""]
    assert alone.signature["dq"] == "*bf16"


def test_a_state_that_is_too_wide_for_a_walk_over_tokens() -> None:
    kind = RecurrenceKind("elementwise")
    use = Use(512, 64, 4, {argument.name: 4 for argument in arguments(kind)}, None)
    assert "registers" in chunked(kind, use, H100)
    assert [kernel.role for kernel in recurrence_kernels(kind, "made", [use], H100)] == ["decode"]


@pytest.mark.parametrize(
    "kind",
    [RecurrenceKind(decay, erase) for decay in ("none", "head", "key") for erase in ("none", "delta")],
    ids=lambda kind: f"{kind.decay}_{kind.erase}",
)
@pytest.mark.parametrize(("target", "size"), [("h100", 192), ("b200", 256)])
def test_wide_heads_have_gradients_by_kernels(target: str, kind: RecurrenceKind, size: int) -> None:
    """In tensor memory each chunk stands in a condition, out of which no accumulator is moved."""
    found = launched(kind, size, size, load_target(target))
    assert found["walk_again", ""].constants["CHANNELS"] >= 16
    assert found["walk_back", ""].constants["COLUMNS"] == 64
    assert ("        if start < end:" in found["walk_back", ""].source) == (target == "b200")


@pytest.mark.parametrize(
    ("kind", "K", "V", "roles"),
    [
        (RecurrenceKind("key", "pair", "previous"), 64, 64, {"walk_back", "walk_again"}),
        (RecurrenceKind("key"), 256, 256, {"walk_back", "walk_again"}),
        (RecurrenceKind("value"), 128, 64, {"prepare_back", "walk_back", "walk_again"}),
        (RecurrenceKind(normalize="sum"), 128, 128, {"walk_back", "walk_again"}),
        (RecurrenceKind("head", normalize="max", log_input=True), 64, 128, {"walk_back", "walk_again"}),
        (RecurrenceKind("head", normalize="max", log_input=True), 64, 64, {"walk_back", "walk_again"}),
        (RecurrenceKind("head", normalize="sum"), 112, 128, set()),
    ],
    ids=[
        "an erase of two rows",
        "wide keys",
        "values",
        "a sum",
        "a maximum",
        "a narrow maximum",
        "a size not seen",
    ],
)
def test_gradients_have_kernels_where_a_row_was_seen_to_fit(
    kind: RecurrenceKind, K: int, V: int, roles: set[str]
) -> None:
    found = {role for role, _ in launched(kind, K, V)}
    assert found - {"prepare", "walk", "walk_ahead", "walk_back_ahead", "carry"} == roles


@pytest.mark.parametrize("erase", ["none", "delta"])
def test_parts_of_rows_under_a_decay_per_head_are_as_narrow_as_rows(erase: Literal["none", "delta"]) -> None:
    """Of two blocks of value columns: the launcher makes them of the type that kernels are compiled for."""
    kind = RecurrenceKind("head", erase)
    back, again = (launched(kind, 128, 256)[role, ""] for role in ("walk_back", "walk_again"))
    name = "dk_write" if erase == "delta" else "dk"
    assert f"{name} = make(blocks, B, T, H, K, **narrow)" in back.source
    assert back.signature[name] == "*bf16"
    assert again.signature.get("dk_write") == ("*bf16" if erase == "delta" else None)
    assert again.constants.get("BLOCKS") == (2 if erase == "delta" else None)


@pytest.mark.parametrize("kind", [RecurrenceKind("value"), RecurrenceKind("key", "delta")])
def test_gradients_that_are_sums_over_blocks_of_values_are_float32(kind: RecurrenceKind) -> None:
    """Kernels are compiled for the types that the launcher gives them."""
    rows = [
        {"role": role, "columns": 64, "channels": 32, "num_warps": 8, "num_stages": 1}
        for role in ("prepare_back", "walk_back", "walk_again")
    ]
    for V, type_ in ((64, "*bf16"), (128, "*fp32")):
        found = launched(kind, 128, V, replace(H100, tiles=(*rows, *H100.tiles)))
        source = found["walk_back", ""].source
        sums = re.findall(
            r"(\w+|\w+, \w+) = \(?(?:make|torch\.empty)\(blocks, .*narrow if blocks == 1", source
        )
        names = {name for each in sums for name in each.split(", ")}
        typed = [
            (name, kernel.signature[name])
            for kernel in found.values()
            for name in kernel.signature
            if kernel.role in ("walk_back", "walk_again") and name.startswith("d")
        ]
        assert names and {name for name, given in typed if given != type_}.isdisjoint(names)
        assert ("dE" if kind.erase == "delta" else "dv", "*bf16") in typed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("rate", "K", "V"), [(True, 16, 2048), (False, 256, 64)])
def test_walks_over_tokens_fit(rate: bool, K: int, V: int) -> None:
    """As a selective scan launches them, and with decays as large as a wide state."""
    pytest.importorskip("triton")
    kind = RecurrenceKind("elementwise", decay_rate=rate)
    fits = verify(list(launched(kind, K, V).values()), H100)
    assert [(fit.title, fit.verdict) for fit in fits if not fit.fits] == [] and len(fits) == 4


@pytest.mark.parametrize(
    "kind",
    [
        RecurrenceKind("head", "delta"),
        RecurrenceKind("head", normalize="sum"),
        RecurrenceKind("key", "delta"),
        RecurrenceKind("key", "pair"),
        RecurrenceKind("value"),
        RecurrenceKind("elementwise"),
    ],
    ids=lambda kind: f"{kind.decay}-{kind.erase}-{kind.normalize}",
)
def test_launches_bring_memory_for_descriptors_to_their_thread(kind: RecurrenceKind) -> None:
    """Triton keeps its allocator by thread, and autograd goes back through a model in another one."""
    source = launched(kind, 64, 64)["walk", ""].source
    module = ast.parse(source)
    makers = set()
    named = {
        node.func.id
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    for function in module.body:
        inner = (
            isinstance(function, ast.FunctionDef) and function.name in named
        )  # whoever calls it has set it
        if isinstance(function, ast.FunctionDef) and not function.decorator_list and not inner:
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            names = {ast.unparse(call.func.value) for call in calls if isinstance(call.func, ast.Subscript)}
            if any("make_tensor_descriptor" in text for name in names for text in _reached(source, name)):
                makers.add(function.name)
                first = function.body[bool(ast.get_docstring(function))]
                assert ast.unparse(first) == "triton.set_allocator(_scratch)", function.name
    done = [node for node in module.body[1:] if isinstance(node, ast.Expr)]
    assert [ast.unparse(node) for node in done] == [], "importing a package changes nothing outside of it"
    forward = "chunk_forward" if kind.normalize == "none" else "normalized_forward"
    expected = {forward, forward.replace("forward", "backward")} if kind.decay != "elementwise" else set()
    assert makers == expected


TWO_SIZES = {
    "archc": 1,
    "name": "two_sizes",
    "model": {"vocab_size": 64, "d_model": 128, "n_layers": 2, "context": 64, "norm": "rmsnorm"},
    "blocks": {
        f"heads_of_{128 // n}": {"mixer": {"use": "delta_net", "n_heads": n}, "mlp": {"use": "swiglu"}}
        for n in (1, 2)
    },
    "layers": ["1 heads_of_128", "1 heads_of_64"],
}


@pytest.mark.parametrize("name", ["gdn_hybrid_340m", "recurrentgemma_2b", "xlstm_small", "two_sizes"])
def test_no_two_kernels_of_a_model_have_the_same_title(name: str) -> None:
    """Else nobody knows which row of the table, or which error, is about which."""
    spec = TWO_SIZES if name == "two_sizes" else SPECS / "models" / f"{name}.yaml"
    fits = [judge(kernel, H100, None, "3.7.1") for kernel in kernels_of(graph_of(spec, target=H100), H100)]
    titles = [(fit.file, fit.title) for fit in fits]
    assert sorted(set(titles)) == sorted(titles)
    shown = {"xlstm_small": "decode_kernel (normaliser)", "two_sizes": "walk (packed, K 64, V 64, H 2)"}
    assert name not in shown or shown[name] in [title for _, title in titles]
