"""Shipped models made small, the same models in transformers, and what their weights are called here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.oracles import hf_models
from tests.support.shrunk import shrunk

Weights = dict[str, Tensor]
Rename = Callable[[Weights], Weights]

THEIR_SIZES = {"vocab_size": 64, "hidden_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Case:
    """A model of both libraries. `rename`: the weights of one layer of theirs, by their names without its prefix."""

    spec: dict[str, Any]
    family: str
    options: dict[str, Any]
    rename: Rename
    norm: str = "model.norm.weight"
    minus_one: bool = False  # their norms of the residual stream are stored minus one
    shared: dict[str, int] = field(
        default_factory=dict
    )  # our shared bodies, and a layer of theirs with their weights


def named(theirs: Weights, prefix: str, names: Mapping[str, str]) -> Weights:
    """Theirs to ours for the names that begin with the prefix, which must all be known."""
    found = {}
    for name, value in theirs.items():
        if name.startswith(prefix):
            found[names[name.removeprefix(prefix)]] = value
    return found


def inside(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}.{name}": value for name, value in weights.items()}


def under(theirs: Weights, prefix: str) -> Weights:
    return {
        name.removeprefix(prefix): value
        for name, value in theirs.items()
        if name.startswith(prefix) and value.numel()
    }


SWIGLU = {"gate_proj.weight": "gate.weight", "up_proj.weight": "up.weight", "down_proj.weight": "y.weight"}
ATTENTION = {f"{theirs}_proj.weight": f"{ours}.weight" for theirs, ours in zip("qkvo", "qkvy", strict=True)}
MAMBA2 = {
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
    "conv1d.weight": "mixed_conv.weight",
    "conv1d.bias": "mixed_conv.bias",
    "in_proj.weight": "in_proj.weight",
    "out_proj.weight": "y.weight",
    "norm.weight": "y_norm.weight",
}


def experts(theirs: Weights, prefix: str, router: str) -> Weights:
    """One tensor holds the gates and the first matrices of all experts, one their last matrices."""
    both, last = theirs[f"{prefix}experts.gate_up_proj"], theirs[f"{prefix}experts.down_proj"]
    found = {"router.weight": theirs[f"{prefix}{router}.weight"]}
    for index, (pair, y) in enumerate(zip(both, last, strict=True)):
        gate, up = pair.chunk(2)
        found |= inside(f"expert.{index}", {"gate.weight": gate, "up.weight": up, "y.weight": y})
    return found


def falcon_h1(theirs: Weights) -> Weights:
    return {
        **inside("first_mixer", named(theirs, "mamba.", MAMBA2)),
        **inside("second_mixer", named(theirs, "self_attn.", ATTENTION)),
        **inside("mlp", named(theirs, "feed_forward.", SWIGLU)),
        "u_norm.weight": theirs["input_layernorm.weight"],
        "y_norm.weight": theirs["pre_ff_layernorm.weight"],
    }


def zamba2(theirs: Weights) -> Weights:
    """A hybrid layer has the Mamba-2 layer inside, and adapters in a list over hybrid layers, two of three empty."""
    own = "mamba_decoder." if "linear.weight" in theirs else ""
    found = inside("mixer", named(theirs, f"{own}mamba.", MAMBA2))
    found["y_norm.weight"] = theirs[f"{own}input_layernorm.weight"]
    if own:
        found["t.weight"] = theirs["linear.weight"]
        adapters = under(theirs, "shared_transformer.feed_forward.gate_up_proj_adapter_list.")
        site = theirs["site"].item()
        found["memory.gate_up_adapter_low.weight"] = adapters[f"{site}.0.weight"]
        found["memory.gate_up_adapter_y.weight"] = adapters[f"{site}.1.weight"]
    return found


def zamba2_shared(theirs: Weights) -> Weights:
    return {
        **named(
            theirs,
            "shared_transformer.self_attn.",
            {**ATTENTION, "o_proj.weight": "h.weight"},
        ),
        "u_norm.weight": theirs["shared_transformer.input_layernorm.weight"],
        "h_norm.weight": theirs["shared_transformer.pre_ff_layernorm.weight"],
        "gate_up.weight": theirs["shared_transformer.feed_forward.gate_up_proj.weight"],
        "y.weight": theirs["shared_transformer.feed_forward.down_proj.weight"],
    }


MAMBA = {
    "A_log": "A_log",
    "D": "D",
    "conv1d.weight": "v_conv.weight",
    "conv1d.bias": "v_conv.bias",
    "in_proj.weight": "in_proj.weight",
    "x_proj.weight": "x_proj.weight",
    "dt_proj.weight": "dt.weight",
    "dt_proj.bias": "dt_bias",
    "out_proj.weight": "y.weight",
    "dt_layernorm.weight": "low_norm.weight",
    "b_layernorm.weight": "k_norm.weight",
    "c_layernorm.weight": "q_norm.weight",
}


def jamba(theirs: Weights) -> Weights:
    dense = "feed_forward.gate_proj.weight" in theirs
    return {
        **inside("mixer", named(theirs, "mamba.", MAMBA)),
        **inside("mixer", named(theirs, "self_attn.", ATTENTION)),
        **inside(
            "mlp",
            named(theirs, "feed_forward.", SWIGLU) if dense else experts(theirs, "feed_forward.", "router"),
        ),
        "h_norm.weight": theirs["input_layernorm.weight"],
        "y_norm.weight": theirs["pre_ff_layernorm.weight"],
    }


def qwen3_next(theirs: Weights) -> Weights:
    linear, full = under(theirs, "linear_attn."), under(theirs, "self_attn.")
    mixer = hf_models.gated_deltanet(linear) if linear else hf_models.gated_attention(full)
    return {
        **inside("mixer", mixer),
        **inside("mlp", experts(theirs, "mlp.", "gate")),
        **inside("mlp.shared_expert", named(theirs, "mlp.shared_expert.", SWIGLU)),
        "mlp.gate.weight": theirs["mlp.shared_expert_gate.weight"],
        "h_norm.weight": 1 + theirs["input_layernorm.weight"],
        "y_norm.weight": 1 + theirs["post_attention_layernorm.weight"],
    }


LATENT = {
    "q_proj.weight": "q_b.weight",
    "kv_a_proj_with_mqa.weight": "kv_a.weight",
    "kv_a_layernorm.weight": "c_norm.weight",
    "kv_b_proj.weight": "kv_b.weight",
    "o_proj.weight": "y.weight",
}


def kimi_linear(theirs: Weights) -> Weights:
    mixer = under(theirs, "self_attn.")
    found = {
        **inside("mixer", hf_models.kda(mixer) if "conv1d.weight" in mixer else named(mixer, "", LATENT)),
        "h_norm.weight": theirs["input_layernorm.weight"],
        "y_norm.weight": theirs["post_attention_layernorm.weight"],
    }
    if "mlp.gate.weight" not in theirs:
        return found | inside("mlp", named(theirs, "mlp.", SWIGLU))
    found |= inside("mlp", experts(theirs, "mlp.", "gate"))
    found |= inside("mlp.shared_expert", named(theirs, "mlp.shared_experts.", SWIGLU))
    return found | {"mlp.correction": theirs["mlp.gate.e_score_correction_bias"]}


def recurrent_gemma(theirs: Weights) -> Weights:
    """Gates are block-diagonal, stored `[block, in, out]`; all norms are stored minus one."""
    mixer = under(theirs, "temporal_block.")
    if "q_proj.weight" in mixer:
        mixer = named(mixer, "", {**ATTENTION, "o_proj.bias": "y.bias"})
    else:
        gates = {}
        for gate in ("recurrent_gate", "input_gate"):
            gates[f"{gate}.weight"] = mixer.pop(f"rg_lru.{gate}_weight").transpose(1, 2)
            gates[f"{gate}.bias"] = mixer.pop(f"rg_lru.{gate}_bias").flatten()
        names = {"rg_lru.recurrent_param": "Lambda"}
        for other, ours in (
            ("linear_y", "branch"),
            ("linear_x", "u0"),
            ("linear_out", "y"),
            ("conv_1d", "u_conv"),
        ):
            names |= {f"{other}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
        mixer = gates | named(mixer, "", names)
    biases = {name.replace("weight", "bias"): ours.replace("weight", "bias") for name, ours in SWIGLU.items()}
    return {
        **inside("mixer", mixer),
        **inside("mlp", named(theirs, "mlp_block.", SWIGLU | biases)),
        "h_norm.weight": 1 + theirs["temporal_pre_norm.weight"],
        "y_norm.weight": 1 + theirs["channel_pre_norm.weight"],
    }


def minimax(theirs: Weights) -> Weights:
    """Queries, keys and values of the linear layers share a matrix, head by head; decays are no weights."""
    mixer = under(theirs, "self_attn.")
    if "qkv_proj.weight" in mixer:
        q, k, v = mixer["qkv_proj.weight"].unflatten(0, (4, 3, 16)).unbind(1)
        mixer = {
            **{f"{name}.weight": part.flatten(0, 1) for name, part in zip("qkv", (q, k, v), strict=True)},
            "u.weight": mixer["output_gate.weight"],
            "o_norm.weight": mixer["norm.weight"],
            "y.weight": mixer["out_proj.weight"],
        }
    else:
        mixer = named(mixer, "", ATTENTION)
    return {
        **inside("mixer", mixer),
        **inside("mlp", experts(theirs, "mlp.", "gate")),
        "u_norm.weight": theirs["input_layernorm.weight"],
        "w_norm.weight": theirs["post_attention_layernorm.weight"],
    }


def lfm2(theirs: Weights) -> Weights:
    conv = {"conv.weight": "o_conv.weight", "in_proj.weight": "in_proj.weight", "out_proj.weight": "y.weight"}
    norms = {"q_layernorm.weight": "q_norm.weight", "k_layernorm.weight": "k_norm.weight"}
    attention = {**ATTENTION, **norms, "out_proj.weight": "y.weight"}
    return {
        **inside("mixer", named(theirs, "conv.", conv)),
        **inside("mixer", named(theirs, "self_attn.", attention)),
        **inside(
            "mlp",
            named(
                theirs,
                "feed_forward.",
                {"w1.weight": "gate.weight", "w3.weight": "up.weight", "w2.weight": "y.weight"},
            ),
        ),
        "h_norm.weight": theirs["operator_norm.weight"],
        "y_norm.weight": theirs["ffn_norm.weight"],
    }


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
CASES: dict[str, Case] = {
    "falcon_h1_0_5b": Case(
        shrunk(
            "falcon_h1_0_5b",
            2,
            {
                "blocks.main.first_mixer.d_inner": 64,
                "blocks.main.first_mixer.head_dim": 16,
                "blocks.main.first_mixer.d_state": 8,
                "blocks.main.first_mixer.n_groups": 2,
                "blocks.main.second_mixer.n_heads": 4,
                "blocks.main.second_mixer.head_dim": 8,
                "blocks.main.mlp.d_ff": 40,
            },
        ),
        "FalconH1",
        {
            **HEADS,
            "num_hidden_layers": 2,
            "intermediate_size": 40,
            "head_dim": 8,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
            "embedding_multiplier": 5.656854249492381,
            "lm_head_multiplier": 0.0390625,
            "key_multiplier": 0.390625,
            "attention_out_multiplier": 0.9375,
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.23570226039551587,
            "mlp_multipliers": [0.8838834764831844, 0.5859375],
            "ssm_multipliers": [0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738],
        },
        falcon_h1,
        "model.final_layernorm.weight",
    ),
    "zamba2_2_7b": Case(
        shrunk(
            "zamba2_2_7b",
            6,
            {
                "shared.*.n_heads": 4,
                "shared.A.rank": 6,
                "shared.B.rank": 6,
                "blocks.*.mixer.d_state": 8,
                "blocks.mamba.mixer.head_dim": 16,
                "blocks.hybrid.mixer.head_dim": 16,
            },
            {"default": "mamba", "hybrid": [1, 3, 4]},
        ),
        "Zamba2",
        {
            "num_hidden_layers": 6,
            "layers_block_type": ["hybrid" if at in (1, 3, 4) else "linear_attention" for at in range(6)],
            "num_attention_heads": 4,
            "num_mem_blocks": 2,
            "adapter_rank": 6,
            "n_mamba_heads": 6,
            "mamba_d_state": 8,
            "chunk_size": 16,
        },
        zamba2,
        "model.final_layernorm.weight",
        shared={"A": 1, "B": 3},
    ),
    "jamba_v0_1": Case(
        shrunk(
            "jamba_v0_1",
            8,
            {
                "blocks.full.mixer.n_heads": 4,
                "blocks.full.mixer.n_kv_heads": 2,
                "blocks.*.mlp.n_experts": 4,
                "blocks.*.mlp.expert.d_ff": 40,
                "blocks.*.mlp.d_ff": 40,
            },
        ),
        "Jamba",
        {
            **HEADS,
            "num_hidden_layers": 8,
            "intermediate_size": 40,
            "num_experts": 4,
            "use_mamba_kernels": False,
        },
        jamba,
        "model.final_layernorm.weight",
    ),
    "qwen3_next_80b": Case(
        shrunk(
            "qwen3_next_80b",
            4,
            {
                "blocks.linear.mixer.n_heads": 2,
                "blocks.linear.mixer.n_v_heads": 4,
                "blocks.linear.mixer.head_dim": 16,
                "blocks.linear.mixer.expand_v": 0.5,
                "blocks.full.mixer.n_heads": 4,
                "blocks.full.mixer.head_dim": 16,
                "blocks.*.mlp.n_experts": 6,
                "blocks.*.mlp.top_k": 3,
                "blocks.*.mlp.expert.d_ff": 16,
                "blocks.*.mlp.shared_expert.d_ff": 20,
            },
        ),
        "Qwen3Next",
        {
            **HEADS,
            "num_hidden_layers": 4,
            "intermediate_size": 40,
            "head_dim": 16,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 20,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        },
        qwen3_next,
        minus_one=True,
    ),
    "kimi_linear_48b": Case(
        shrunk(
            "kimi_linear_48b",
            5,
            {
                "blocks.*.mixer.n_heads": 3,
                "blocks.first.mixer.head_dim": 16,
                "blocks.linear.mixer.head_dim": 16,
                "blocks.full.mixer.kv_rank": 12,
                "blocks.full.mixer.nope_dim": 8,
                "blocks.full.mixer.rope_dim": 4,
                "blocks.full.mixer.v_dim": 10,
                "blocks.first.mlp.d_ff": 40,
                "blocks.*.mlp.n_experts": 6,
                "blocks.*.mlp.top_k": 2,
                "blocks.*.mlp.expert.d_ff": 16,
                "blocks.*.mlp.shared_expert.d_ff": 16,
            },
            {"default": "linear", "first": [0], "full": [3, 4]},
        ),
        "KimiLinear",
        {
            "num_hidden_layers": 5,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"] * 2,
            "mlp_layer_types": ["dense"] + ["sparse"] * 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "linear_head_dim": 16,
            "linear_num_heads": 3,
            "kv_lora_rank": 12,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 10,
            "intermediate_size": 40,
            "moe_intermediate_size": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
        },
        kimi_linear,
    ),
    "recurrentgemma_2b": Case(
        shrunk(
            "recurrentgemma_2b",
            5,
            {
                "model.embedding_scale": 6.9375,  # the square root of 48 as bfloat16 has it
                "blocks.*.mixer.n_heads": 4,
                "blocks.local.mixer.window": 9,
                "blocks.*.mlp.d_ff": 40,
            },
        ),
        "RecurrentGemma",
        {
            "num_hidden_layers": 5,
            "intermediate_size": 80,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "attention_window_size": 9,
        },
        recurrent_gemma,
        "model.final_norm.weight",
        minus_one=True,
    ),
    "minimax_01": Case(
        shrunk(
            "minimax_01",
            4,
            {
                "blocks.*.mixer.n_heads": 4,
                "blocks.*.mixer.head_dim": 16,
                "blocks.full.mixer.n_kv_heads": 2,
                "blocks.full.mixer.fraction": 1,  # transformers turns whole heads
                "blocks.*.mlp.n_experts": 4,
                "blocks.*.mlp.expert.d_ff": 40,
            },
            ["3 linear", "1 full"],
        ),
        "MiniMax",
        {
            **HEADS,
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "intermediate_size": 40,
            "head_dim": 16,
            "num_local_experts": 4,
            "block_size": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7},
            **dict.fromkeys(
                ("full_attn_alpha_factor", "linear_attn_alpha_factor", "mlp_alpha_factor"), 8**0.25
            ),
        },
        minimax,
    ),
    "lfm2_1_2b": Case(
        shrunk(
            "lfm2_1_2b",
            4,
            {"blocks.full.mixer.n_heads": 4, "blocks.full.mixer.n_kv_heads": 2, "blocks.*.mlp.d_ff": 40},
            {"default": "conv", "full": [1, 3]},
        ),
        "Lfm2",
        {
            **HEADS,
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "intermediate_size": 40,
            "block_auto_adjust_ff_dim": False,
        },
        lfm2,
        "model.embedding_norm.weight",
    ),
}


def published(case: Case) -> nn.Module:
    """Their model with random weights, in float32."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.family}Config")(**THEIR_SIZES, **case.options)
    config._attn_implementation = "eager"
    model: nn.Module = getattr(transformers, f"{case.family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    biases = [value for name, value in model.named_buffers() if name.endswith("e_score_correction_bias")]
    with torch.no_grad():
        for parameter in [
            *model.parameters(),
            *biases,
        ]:  # none may be at a value that hides it, such as 0 or 1
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and parameter.shape[-1] > 4:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * noise)
    return model


def our_weights(case: Case, theirs: Weights, tied: bool) -> Weights:
    """The state dict of our model from theirs."""
    found = {"embedding.weight": theirs["model.embed_tokens.weight"]}
    found["norm.weight"] = theirs[case.norm] + (1 if case.minus_one else 0)
    if not tied:
        found["head.weight"] = theirs["lm_head.weight"]
    count = 1 + max(int(name.split(".")[2]) for name in theirs if name.startswith("model.layers."))
    sites = 0
    for index in range(count):
        layer = under(theirs, f"model.layers.{index}.")
        if "linear.weight" in layer:
            layer["site"] = torch.tensor(sites)
            sites += 1
        found |= inside(f"layers.{index}", case.rename(layer))
    for name, index in case.shared.items():
        found |= inside(f"shared.{name}", zamba2_shared(under(theirs, f"model.layers.{index}.")))
    return found
