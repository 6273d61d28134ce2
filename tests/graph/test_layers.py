"""Layers as runs of classes: compression, sites, conditions that split a class, exports, overriding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archc.elaboration.runs import compress
from archc.graph.types import Graph, Run
from archc.pipeline import check, graph_of, parameters, show
from archc.spec.diagnostics import SpecError
from archc.spec.unparse import unparse

PLAIN = {"body": {"h": "silu(linear(x, 2 * d_model))", "y": "linear(h, d_model)"}}


def model(mixers: dict[str, Any], layers: Any = None, n_layers: int = 6, **uses: Any) -> dict[str, Any]:
    """A model with a block for each mixer."""
    blocks = {name: {"mixer": {"use": name, **uses.get(name, {})}} for name in mixers}
    found: dict[str, Any] = {
        "archc": 1,
        "name": "layered",
        "model": {"vocab_size": 32, "d_model": 16, "n_layers": n_layers, "context": 32},
        "mixers": copy.deepcopy(mixers),
        "blocks": blocks,
    }
    return found if layers is None else {**found, "layers": layers}


def order(graph: Graph) -> list[str]:
    """The class of the mixer of each layer, in short."""
    return [graph.modules[key].slots["mixer"][0] for key in graph.layers()]


# -- compression --------------------------------------------------------------------------------------------


def expanded(keys: list[str], period: int) -> list[str]:
    """What a description stands for."""
    head, cycle, repeats, tail = compress(keys, period)
    return [run.module for run in (*head, *(cycle * repeats), *tail) for _ in range(run.count)]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(0, 8))
def test_a_description_stands_for_the_same_layers(keys: list[str], period: int) -> None:
    assert expanded(keys, period) == keys


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(2, 12), st.integers(0, 3))
def test_repeated_groups_are_found(group: list[str], times: int, more: int) -> None:
    keys = group * times + group[: min(more, len(group))]
    head, cycle, repeats, tail = compress(keys, len(group))
    assert len(head) + len(cycle) + len(tail) <= 2 * len(group)
    assert not head and repeats * sum(run.count for run in cycle) >= len(group) * (times - 1)


def test_one_class_is_one_run_whatever_the_depth() -> None:
    for depth in (10, 1000):
        head, cycle, repeats, tail = compress(["a"] * depth, 1)
        assert len(head) + len(cycle) + len(tail) == 1
        assert sum(r.count for r in (*head, *tail)) + repeats * sum(r.count for r in cycle) == depth


def test_a_first_layer_of_its_own_is_the_head() -> None:
    head, cycle, repeats, tail = compress(["a_first", *["a"] * 9], 1)
    assert head == (Run("a_first", 1),) and cycle == (Run("a", 1),) and repeats == 9 and not tail


def test_three_to_one() -> None:
    graph = graph_of(model({"linear": PLAIN, "full": PLAIN}, ["3 linear", "1 full"], n_layers=8))
    assert [run.count for run in graph.cycle] == [3, 1] and graph.repeats == 2
    assert order(graph) == ["linear", "linear", "linear", "full"] * 2


# -- sites and layers ---------------------------------------------------------------------------------------


def test_site_counts_the_uses_of_a_body_and_layer_all_layers() -> None:
    counted = {"body": {"y": "linear(x * site + x * layer, d_model)"}}
    other = {"body": {"y": "linear(x, d_model)"}}
    graph = graph_of(model({"other": other, "counted": counted}, ["1 other", "1 counted"], n_layers=6))
    module = next(m for m in graph.modules.values() if m.body.name == "counted")
    assert (module.values["site"], module.values["layer"], module.values["n_sites"]) == (0, 1, 3)
    assert not module.decisions, "in arithmetic the layer is a value"
    assert order(graph) == ["other", "counted"] * 3


@pytest.mark.parametrize(
    ("condition", "classes"),
    [
        ("site > 0", [0, 1, 1, 1, 1, 1]),
        ("layer % 2 == 0", [0, 1, 0, 1, 0, 1]),
        ("layer >= n_layers - 1", [0, 0, 0, 0, 0, 1]),
        ("layer > 1 and layer < 4", [0, 0, 1, 1, 0, 0]),
        ("n_layers > 3", [0, 0, 0, 0, 0, 0]),
    ],
)
def test_conditions_on_the_layer_split_classes_and_others_do_not(condition: str, classes: list[int]) -> None:
    mixer = {
        "body": {
            "a": "linear(x, d_model)",
            "b": "silu(linear(x, d_model))",
            "y": f"a if {condition} else a * b",
        }
    }
    graph = graph_of(model({"mine": mixer}))
    found = order(graph)
    names = list(dict.fromkeys(found))
    assert [names.index(name) for name in found] == classes
    decided = [d for m in graph.modules.values() for d in m.decisions]
    assert {unparse(d.test) for d in decided} == (
        set() if "layer" not in condition.replace("n_layers", "") and "site" not in condition else {condition}
    )


def test_what_only_an_untaken_branch_reads_is_not_there() -> None:
    mixer = {
        "body": {
            "low": "linear(x, 4)",
            "gate": "linear(low, d_model)",
            "v": "linear(x, d_model)",
            "y": "v * gate if layer > 0 else v",
        }
    }
    names = parameters(model({"mine": mixer}, n_layers=2))
    assert "layers.1.mixer.low.weight" in names and "layers.1.mixer.gate.weight" in names
    assert not any(name.startswith(("layers.0.mixer.low", "layers.0.mixer.gate")) for name in names)


def test_numbers_of_the_layer_do_not_split_a_class() -> None:
    mixer = {"body": {"y": "linear(x, d_model) * (0.8 - 0.6 * exp(-0.3 * layer))"}}
    graph = graph_of(model({"mine": mixer}, n_layers=50))
    assert len(set(graph.layers())) == 1


# -- across layers ------------------------------------------------------------------------------------------

EXPORTING = {"export": ["v"], "body": {"v": "linear(x, d_model)", "y": "v + first(v) if site > 0 else v"}}


def test_exports_are_read_from_the_second_use_on() -> None:
    graph = graph_of(model({"mine": EXPORTING}))
    reading = [any(n.op == "earlier" for n in graph.modules[key].subgraph.nodes) for key in order(graph)]
    assert reading == [False, True, True, True, True, True]
    exporting = [set(graph.modules[key].subgraph.exports) for key in order(graph)]
    assert exporting == [{"v"}] * 6


def test_first_and_previous_stay_apart() -> None:
    mixer = {
        "export": ["v"],
        "body": {"v": "linear(x, d_model)", "y": "v + first(v) + previous(v) * 2 if site > 0 else v"},
    }
    module = graph_of(model({"mine": mixer})).modules["mine_2"]
    which = {n.attrs["which"] for n in module.subgraph.nodes if n.op == "earlier"}
    assert which == {"first", "previous"}


def test_another_body_may_read_what_was_exported_before_it() -> None:
    reader = {"body": {"y": "linear(x, d_model) + previous(v)"}}
    good = model({"mine": EXPORTING, "reader": reader}, ["1 mine", "1 reader"])
    assert not check(good)
    bad = model({"mine": EXPORTING, "reader": reader}, ["1 reader", "1 mine"])
    assert [found.code for found in check(bad)] == ["E338"]


# -- overriding ---------------------------------------------------------------------------------------------


def test_an_overridden_equation_replaces_one_and_keeps_the_others() -> None:
    spec = model({"mine": PLAIN}, mine={"body": {"h": "relu(linear(x, 3 * d_model))"}})
    names = parameters(spec)
    assert names["layers.0.mixer.h.weight"] == (48, 16) and names["layers.0.mixer.y.weight"] == (16, 48)
    graph = graph_of(spec)
    functions = {n.attrs.get("function") for m in graph.modules.values() for n in m.subgraph.nodes}
    assert "relu" in functions and "silu" not in functions


def test_uses_with_other_arguments_are_other_classes_and_equal_ones_are_one() -> None:
    wide = {
        "params": {"d_ff": {"type": "int", "default": 32}},
        "body": {"h": "silu(linear(x, d_ff))", "y": "linear(h, d_model)"},
    }
    spec = model({"mine": wide}, n_layers=3)
    spec["blocks"] = {
        name: {"mixer": {"use": "mine", "d_ff": d_ff}} for name, d_ff in (("a", 32), ("b", 64), ("c", 32))
    }
    spec["layers"] = ["1 a", "1 b", "1 c"]
    first, second, third = order(graph_of(spec))
    assert first == third != second


# -- printing -----------------------------------------------------------------------------------------------


def test_an_unknown_pass_is_an_error_that_lists_them() -> None:
    with pytest.raises(SpecError) as caught:
        show(model({"mine": PLAIN}), after="simplfy")
    (found,) = caught.value.diagnostics
    assert found.code == "E399" and "simplify" in found.help


def test_text_names_decisions_and_runs() -> None:
    text = show(model({"mine": EXPORTING}), after="build")
    assert "decided site > 0 = false" in text and "decided site > 0 = true" in text
    assert text.rstrip().split("\n")[-1] == "layers: mine_block x1, mine_block_2 x5"


def test_what_only_a_replaced_equation_read_is_left_out() -> None:
    """A library's own equations are no mistake of the user who replaces the one that read them."""
    spec: dict[str, Any] = {
        "archc": 1,
        "name": "replaced",
        "model": {"vocab_size": 64, "d_model": 32, "n_layers": 1, "context": 64},
        "mixers": {
            "low": {"body": {"a": "linear(x, 8)", "g": "linear(a, d_model)", "y": "linear(x * g, d_model)"}}
        },
        "blocks": {"main": {"mixer": {"use": "low", "body": {"g": "silu(linear(x, d_model))"}}}},
        "layers": ["1 main"],
    }
    names = parameters(spec)
    assert "layers.0.mixer.g.weight" in names and "layers.0.mixer.a.weight" not in names
    spec["blocks"]["main"]["mixer"]["body"] = {"a": "linear(x, 4)", "g": "silu(linear(x, d_model))"}
    assert [found.code for found in check(spec)] == ["E332"], "an equation of the user's own is one"
