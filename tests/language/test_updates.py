"""Buffers that training updates, routers, and what weight decay leaves alone."""

from __future__ import annotations

import json

import torch

from tests.support.packages import package

MODEL = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "context": 64}
EXPERTS = {
    "params": {"n_experts": 4, "top_k": 2, "rate": {"type": "number", "default": "0.001"}},
    "slots": {"expert": "mlp"},
    "body": {
        "scores": "sigmoid(linear(x, [n_experts], name=router))",
        "w0": "topk(scores, top_k, by=scores + buffer(correction, [n_experts], init=0))",
        "w": "w0 / sum(w0)",
        "y": "mixture(expert, x, weights=w)",
    },
    "updates": {
        "correction": "correction + rate * sign(mean(mean(w > 0, over=tokens)) - mean(w > 0, over=tokens))"
    },
}
SPEC = {
    "archc": 1,
    "name": "experts",
    "model": MODEL,
    "mlps": {"experts": EXPERTS},
    "blocks": {
        "main": {
            "mixer": {"use": "attention", "n_heads": 4},
            "mlp": {"use": "experts", "expert": {"use": "swiglu", "d_ff": 16}},
        }
    },
    "layers": ["1 main"],
}


def test_a_buffer_takes_its_update_after_the_step_and_no_gradient() -> None:
    model = package(SPEC).Model()
    tokens = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(0))
    before = model.layers[0].mlp.correction.clone()
    loss = model.loss(tokens)
    assert torch.equal(model.layers[0].mlp.correction, before), "a loss alone changes nothing"
    loss.total.backward()
    model.post_step()
    after = model.layers[0].mlp.correction
    assert sorted(set(after.abs().tolist())) in ([0.0010000000474974513], [0.0, 0.0010000000474974513])
    assert "layers.0.mlp.correction" in model.state_dict()
    assert "layers.0.mlp.correction" not in dict(model.named_parameters())


def test_the_update_moves_the_load_towards_balance() -> None:
    """An expert that gets no token is lifted until it gets some (DeepSeek-V3's correction, without a loss)."""
    spec = json.loads(json.dumps({**SPEC, "name": "experts_fast"}))
    spec["mlps"]["experts"]["params"]["rate"]["default"] = "0.05"
    model = package(spec).Model()
    tokens = torch.randint(0, 64, (4, 64), generator=torch.Generator().manual_seed(1))
    model.layers[0].mlp.correction.copy_(torch.tensor([0.0, 0.0, 0.0, -1.0]))

    def load() -> float:
        _, seen = model(tokens, capture=["layers.0.mlp.w"])
        return float((seen["layers.0.mlp.w"] > 0).float().mean((0, 1))[3])

    loads = [load()]
    while loads[-1] == 0 and len(loads) < 40:
        model.loss(tokens)
        model.post_step()
        loads.append(load())
    assert loads[0] == 0 and loads[-1] > 0
    assert len(loads) > 5, "one step moves the correction by the rate"


def test_evaluation_collects_no_updates() -> None:
    model = package(SPEC).Model().eval()
    before = model.layers[0].mlp.correction.clone()
    model.loss(torch.randint(0, 64, (1, 20)))
    model.post_step()
    assert torch.equal(model.layers[0].mlp.correction, before)


def test_weight_decay_can_be_refused() -> None:
    table = "param(table, [pair, d_model], init=0, weight_decay=false)"
    body = {"y": f"linear(x + sum({table}, over=pair), d_model)"}
    spec = {
        "archc": 1,
        "name": "undecayed",
        "model": MODEL,
        "mixers": {"mine": {"params": {"pair": 2}, "body": body}},
        "blocks": {"main": {"mixer": {"use": "mine"}}},
        "layers": ["1 main"],
    }
    model = package(spec).Model()
    decayed, free = model.parameter_groups(weight_decay=0.1)
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    assert "layers.0.mixer.table" in {names[id(p)] for p in free["params"]}
    assert "layers.0.mixer.y.weight" in {names[id(p)] for p in decayed["params"]}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
