"""Tiny random Hugging Face models, what enters and leaves one layer, and what its weights are called here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

COMMON = {"vocab_size": 128, "hidden_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
MLP = {"intermediate_size": 96}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
Renamed = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One layer of one model: where its module is, what its weights are called here, the oracle's sizes."""

    oracle: str
    config: str
    model: str
    options: dict[str, Any]
    module: str
    sizes: dict[str, Any]
    rename: Callable[[Renamed], Renamed]


def renamed(**names: str) -> Callable[[Renamed], Renamed]:
    """Ours to theirs, `__` for a dot: every weight of the module must be named."""

    def rename(theirs: Renamed) -> Renamed:
        ours = {mine.replace("__", "."): theirs[name] for mine, name in names.items()}
        assert set(names.values()) == set(theirs), set(names.values()) ^ set(theirs)
        return ours

    return rename


LLAMA = {
    "q__weight": "q_proj.weight",
    "k__weight": "k_proj.weight",
    "v__weight": "v_proj.weight",
    "y__weight": "o_proj.weight",
}
NORMS = {"q_norm__weight": "q_norm.weight", "k_norm__weight": "k_norm.weight"}
BIASES = {"q__bias": "q_proj.bias", "k__bias": "k_proj.bias", "v__bias": "v_proj.bias"}


def gated_attention(theirs: Renamed) -> Renamed:
    """Queries and gates share a matrix, head by head; the norms' weights are stored minus one."""
    heads = theirs["q_proj.weight"].reshape(4, 2, 16, -1)
    return {
        "q.weight": heads[:, 0].flatten(0, 1),
        "gate.weight": heads[:, 1].flatten(0, 1),
        "k.weight": theirs["k_proj.weight"],
        "v.weight": theirs["v_proj.weight"],
        "y.weight": theirs["o_proj.weight"],
        "q_norm.weight": 1 + theirs["q_norm.weight"],
        "k_norm.weight": 1 + theirs["k_norm.weight"],
    }


def gated_deltanet(theirs: Renamed) -> Renamed:
    """One matrix holds q, k, v and the gate, key head by key head; one convolution holds q, k, v."""
    n_heads, n_v_heads, key, value = 2, 4, 16, 8
    per = n_v_heads // n_heads
    widths = [key, key, per * value, per * value]
    q, k, v, z = theirs["in_proj_qkvz.weight"].reshape(n_heads, -1, 48).split(widths, 1)
    beta, decay = theirs["in_proj_ba.weight"].reshape(n_heads, -1, 48).split([per, per], 1)
    conv = theirs["conv1d.weight"].squeeze(1).split([n_heads * key, n_heads * key, n_v_heads * value])
    return {
        **{
            f"{name}.weight": part.flatten(0, 1)
            for name, part in {"q": q, "k": k, "v": v, "gate": z, "beta": beta, "decay": decay}.items()
        },
        **{f"{name}_conv.weight": part for name, part in zip("qkv", conv, strict=True)},
        "decay_A_log": theirs["A_log"],
        "decay_dt_bias": theirs["dt_bias"],
        "y_norm.weight": theirs["norm.weight"],
        "y.weight": theirs["out_proj.weight"],
    }


def kda(theirs: Renamed) -> Renamed:
    """One convolution holds q, k, v."""
    conv = theirs["conv1d.weight"].squeeze(1).chunk(3)
    return {
        **{f"{name}.weight": theirs[f"{name}_proj.weight"] for name in "qkv"},
        **{f"{name}_conv.weight": part for name, part in zip("qkv", conv, strict=True)},
        "beta.weight": theirs["b_proj.weight"],
        "decay_low.weight": theirs["forget_gate.f_a_proj.weight"],
        "decay.weight": theirs["forget_gate.f_b_proj.weight"],
        "decay_A_log": theirs["forget_gate.A_log"].flatten(),
        "decay_dt_bias": theirs["forget_gate.dt_bias"].reshape(3, 16),
        "gate_low.weight": theirs["g_a_proj.weight"],
        "gate.weight": theirs["g_b_proj.weight"],
        "y_norm.weight": theirs["o_norm.weight"],
        "y.weight": theirs["o_proj.weight"],
    }


MAMBA = {
    "in_proj.weight": "in_proj.weight",
    "in_proj.bias": "in_proj.bias",
    "v_conv.weight": "conv1d.weight",
    "v_conv.bias": "conv1d.bias",
    "x_proj.weight": "x_proj.weight",
    "low_norm.weight": "dt_layernorm.weight",
    "k_norm.weight": "b_layernorm.weight",
    "q_norm.weight": "c_layernorm.weight",
    "dt.weight": "dt_proj.weight",
    "dt_bias": "dt_proj.bias",
    "A_log": "A_log",
    "D": "D",
    "y.weight": "out_proj.weight",
    "y.bias": "out_proj.bias",
}


def mamba(*also: str) -> Callable[[Renamed], Renamed]:
    """The weights that every Mamba has, and of the others those of these names."""
    always = {name for name in MAMBA.values() if "layernorm" not in name and "_proj.bias" not in name}
    names = {ours: theirs for ours, theirs in MAMBA.items() if theirs in {*always, "dt_proj.bias", *also}}
    return renamed(**{ours.replace(".", "__"): theirs for ours, theirs in names.items()})


def minus_one(names: dict[str, str]) -> Callable[[Renamed], Renamed]:
    """As `renamed`; norms are stored minus one."""

    def rename(theirs: Renamed) -> Renamed:
        ours = renamed(**names)(theirs)
        return {name: value + 1 if "norm" in name else value for name, value in ours.items()}

    return rename


def with_taps(**names: str) -> Callable[[Renamed], Renamed]:
    """As `renamed`; convolutions have a middle axis of 1."""

    def rename(theirs: Renamed) -> Renamed:
        ours = renamed(**names)(theirs)
        return {name: value.squeeze(1) if value.dim() == 3 else value for name, value in ours.items()}

    return rename


def lightning(theirs: Renamed) -> Renamed:
    """One matrix holds q, k and v, head by head."""
    parts = theirs["qkv_proj.weight"].reshape(4, 3, 12, 48)
    return {
        **{f"{name}.weight": parts[:, index].flatten(0, 1) for index, name in enumerate("qkv")},
        "u.weight": theirs["output_gate.weight"],
        "o_norm.weight": theirs["norm.weight"].reshape(4, 12),
        "y.weight": theirs["out_proj.weight"],
    }


ATTENTION = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "theta": 10000.0, "norm_eps": 1e-6}
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
CASES = {
    "llama": Case(
        "attention",
        "LlamaConfig",
        "LlamaForCausalLM",
        {**HEADS, **MLP, "head_dim": 16, "num_hidden_layers": 1, "rope_theta": 10000.0},
        "model.layers.0.self_attn",
        ATTENTION,
        renamed(**LLAMA),
    ),
    "qwen2 with biases": Case(
        "attention",
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {**HEADS, **MLP, "num_hidden_layers": 1},
        "model.layers.0.self_attn",
        {**ATTENTION, "head_dim": 12},
        renamed(**LLAMA, **BIASES),
    ),
    "mistral with a window": Case(
        "attention",
        "MistralConfig",
        "MistralForCausalLM",
        {**HEADS, **MLP, "head_dim": 16, "num_hidden_layers": 1, "sliding_window": 7},
        "model.layers.0.self_attn",
        {**ATTENTION, "window": 7},
        renamed(**LLAMA),
    ),
    "gemma2 with a softcap": Case(
        "attention",
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **HEADS,
            **MLP,
            "head_dim": 16,
            "num_hidden_layers": 1,
            "sliding_window": 9,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
        },
        "model.layers.0.self_attn",
        {**ATTENTION, "window": 9, "softcap": 2.0},
        renamed(**LLAMA),
    ),
    "qwen3 with norms per head": Case(
        "attention",
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {**HEADS, **MLP, "head_dim": 16, "num_hidden_layers": 1},
        "model.layers.0.self_attn",
        {**ATTENTION, "qk_norm": "head"},
        renamed(**LLAMA, **NORMS),
    ),
    "olmo2 with norms over the projection": Case(
        "attention",
        "Olmo2Config",
        "Olmo2ForCausalLM",
        {**HEADS, **MLP, "num_hidden_layers": 1, "rms_norm_eps": 1e-6},
        "model.layers.0.self_attn",
        {**ATTENTION, "head_dim": 12, "qk_norm": "projection"},
        renamed(**LLAMA, **NORMS),
    ),
    "qwen3_next attention with gate and partial rotation": Case(
        "attention",
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {
            **HEADS,
            **MLP,
            **HYBRID,
            **EXPERTS,
            "head_dim": 16,
            "num_experts": 2,
            "shared_expert_intermediate_size": 16,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        "model.layers.1.self_attn",
        {**ATTENTION, "qk_norm": "head", "output_gate": "element", "fraction": 0.25},
        gated_attention,
    ),
    "qwen3_next gated delta": Case(
        "gated_deltanet",
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {
            **HEADS,
            **MLP,
            **HYBRID,
            **EXPERTS,
            "head_dim": 16,
            "num_experts": 2,
            "shared_expert_intermediate_size": 16,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        "model.layers.0.linear_attn",
        {"n_heads": 2, "n_v_heads": 4, "head_dim": 16, "v_dim": 8, "norm_eps": 1e-6},
        gated_deltanet,
    ),
    "kimi_linear": Case(
        "kda",
        "KimiLinearConfig",
        "KimiLinearForCausalLM",
        {
            **MLP,
            **HYBRID,
            **EXPERTS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_local_experts": 2,
            "mlp_layer_types": ["dense", "dense"],
            "linear_head_dim": 16,
            "linear_num_heads": 3,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 256,
        },
        "model.layers.0.self_attn",
        {"n_heads": 3, "head_dim": 16, "v_dim": 16, "rank": 16, "norm_eps": 1e-6},
        kda,
    ),
    "lfm2 short convolution": Case(
        "short_conv",
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {**HEADS, **MLP, "num_hidden_layers": 1, "layer_types": ["conv"], "conv_bias": True},
        "model.layers.0.conv",
        {},
        with_taps(
            in_proj__weight="in_proj.weight",
            in_proj__bias="in_proj.bias",
            o_conv__weight="conv.weight",
            o_conv__bias="conv.bias",
            y__weight="out_proj.weight",
            y__bias="out_proj.bias",
        ),
    ),
    "mamba2": Case(
        "mamba2",
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {
            "num_hidden_layers": 1,
            "num_heads": 6,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 2,
            "chunk_size": 16,
        },
        "backbone.layers.0.mixer",
        {"n_heads": 6, "head_dim": 16, "d_state": 8, "n_groups": 2},
        renamed(
            in_proj__weight="in_proj.weight",
            mixed_conv__weight="conv1d.weight",
            mixed_conv__bias="conv1d.bias",
            A_log="A_log",
            D="D",
            dt_bias="dt_bias",
            y_norm__weight="norm.weight",
            y__weight="out_proj.weight",
        ),
    ),
    "mamba": Case(
        "mamba",
        "MambaConfig",
        "MambaForCausalLM",
        {"num_hidden_layers": 1, "state_size": 8, "use_bias": True},
        "backbone.layers.0.mixer",
        {"d_state": 8},
        mamba("in_proj.bias", "out_proj.bias"),
    ),
    "falcon_mamba": Case(
        "mamba",
        "FalconMambaConfig",
        "FalconMambaForCausalLM",
        {"num_hidden_layers": 1, "state_size": 8, "mixer_rms_eps": 1e-6},
        "backbone.layers.0.mixer",
        {"d_state": 8, "inner_norm": "fixed", "inner_eps": 1e-6},
        mamba(),
    ),
    "jamba": Case(
        "mamba",
        "JambaConfig",
        "JambaForCausalLM",
        {
            **HEADS,
            **MLP,
            "num_hidden_layers": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 5,
            "num_experts": 1,
            "rms_norm_eps": 1e-3,
        },
        "model.layers.0.mamba",
        {"d_state": 8, "inner_norm": "learned", "inner_eps": 1e-3},
        mamba("dt_layernorm.weight", "b_layernorm.weight", "c_layernorm.weight"),
    ),
    **{
        f"minimax lightning attention, layer {layer}": Case(
            "lightning",
            "MiniMaxConfig",
            "MiniMaxForCausalLM",
            {
                **HEADS,
                **MLP,
                "num_hidden_layers": 3,
                "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                "head_dim": 12,
                "block_size": 16,
                "num_local_experts": 2,
            },
            f"model.layers.{layer}.self_attn",
            {"n_heads": 4, "head_dim": 12, "angles": False, "activate_v": True, "sigmoid": True}
            | {"layer": layer, "n_layers": 3},
            lightning,
        )
        for layer in (0, 2)
    },
    "xlstm": Case(
        "mlstm_7b",
        "xLSTMConfig",
        "xLSTMForCausalLM",
        {"num_hidden_layers": 1, "num_blocks": 1, "num_heads": 4, "autocast_kernel_dtype": "float32"},
        "backbone.blocks.0.mlstm_layer",
        {"n_heads": 4, "head_dim": 6, "v_dim": 12, "norm_eps": 1e-6},
        renamed(
            q__weight="q.weight",
            k__weight="k.weight",
            v__weight="v.weight",
            igate__weight="igate_preact.weight",
            igate__bias="igate_preact.bias",
            fgate__weight="fgate_preact.weight",
            fgate__bias="fgate_preact.bias",
            gate__weight="ogate_preact.weight",
            y_norm__weight="multihead_norm.weight",
            y__weight="out_proj.weight",
        ),
    ),
}


def run(case: Case, length: int) -> tuple[Renamed, Tensor, Tensor]:
    """Our weights, and what entered and left the layer, `[2, length, d_model]`, in float32."""
    torch.manual_seed(0)
    config = getattr(transformers, case.config)(**COMMON, **case.options)
    config._attn_implementation = "eager"
    model = getattr(transformers, case.model)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # none may be at a value that hides it, such as 0 or 1
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * noise)
    module: nn.Module = model.get_submodule(case.module)
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["y"] = result[0] if isinstance(result, tuple) else result

    module.register_forward_hook(keep, with_kwargs=True)
    tokens = torch.randint(3, 128, (2, length), generator=generator)
    with torch.no_grad():
        model(tokens, use_cache=False)
    weights = case.rename({name: value.detach() for name, value in module.named_parameters()})
    return weights, seen["x"], seen["y"]
