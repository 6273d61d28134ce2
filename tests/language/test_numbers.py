"""Numbers among values: constants keep the model's dtype, and what counts as no value at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archc.pipeline import check, graph_of
from tests.language.check import distance, linear, spec_of
from tests.support.packages import random_model


@pytest.mark.parametrize(("base", "first"), [("arange(width)", 0), ("(2 * arange(width) + 1)", 1)])
def test_negative_powers_of_whole_values(base: str, first: int) -> None:
    """torch refuses negative powers of whole numbers, whatever stands for the exponent."""
    spec = spec_of(
        "whole_powers",
        {
            "u": f"linear(x, width) * (1 + {base}) ** -1 + {base} ** (1 - two)",
            "y": "linear(u, d_model, name=out)",
        },
        {"width": 4, "two": 0},
    )
    numbers = torch.arange(4, dtype=torch.float64) * (1 + first) + first

    def definition(mixer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (linear(mixer, "u", x, 4) / (1 + numbers) + numbers) @ mixer.out.weight.T  # type: ignore[union-attr, operator]

    assert distance(spec, definition, 3) < 1e-7  # constants are float32


@pytest.mark.parametrize(
    "equation",
    [
        "sum(outer(u, ones(3)), over=3)",
        "u * ones(width)",
        "u * exp(-arange(width))",
        "concat(u, zeros(2))",
        "where(arange(width) < 2, u, 0 * ones(width))",
    ],
)
def test_constants_do_not_widen_a_model_in_bfloat16(equation: str) -> None:
    """The matrix after them takes the dtype of the model only."""
    spec = spec_of(
        "constants", {"u": "linear(x, width)", "y": f"linear({equation}, d_model, name=out)"}, {"width": 4}
    )
    model = random_model(spec).to(torch.bfloat16)
    with torch.no_grad():
        assert model(torch.arange(6)[None]).dtype == torch.bfloat16


@pytest.mark.parametrize(("gate", "kept"), [("none", "x"), ("silu", "silu(x)")])
def test_a_choice_of_none_is_no_condition_that_holds(gate: str, kept: str) -> None:
    spec = spec_of("choices", {"u": "silu(x) if gate else x", "y": "linear(u, d_model)"})
    spec["mixers"]["own"]["params"] = {"gate": {"type": "choice", "of": ["none", "silu"], "default": gate}}
    read = [m.subgraph.texts[0] for m in graph_of(spec).modules.values() if m.body.name == "own"]
    assert read == [f"u: {kept}"]


def test_a_mapping_with_a_default_may_be_none() -> None:
    turned = "rope(q, theta=angles.theta) if angles else q"
    spec = spec_of("angles", {"q": "linear(x, [2, 8])", "p": turned, "y": "linear(p, d_model)"})
    spec["mixers"]["own"]["params"] = {"angles": {"type": "mapping", "default": {"theta": 100}}}

    def turns() -> bool:
        return any(node.op == "rope" for m in graph_of(spec).modules.values() for node in m.subgraph.nodes)

    assert turns()
    spec["blocks"]["main"]["mixer"]["angles"] = "none"
    assert not turns()
    spec["mixers"]["own"]["body"]["p"] = "rope(q, theta=angles.theta)"
    assert {found.code for found in check(spec)} == {"E161"}
    spec["mixers"]["own"]["params"]["angles"].pop("default")  # required: nothing says that it may be none
    assert {found.code for found in check(spec)} == {"E222"}
