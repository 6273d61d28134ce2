"""Which kernels the layers of a model for the H100 take, in the order in which they run, forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from archc.codegen.package import package_files
from archc.kernels.targets import load_target
from archc.pipeline import graph_of
from tests.support.imports import imported
from tests.support.trace import Trace

pytest.importorskip("triton")
BLOCK = ["rmsnorm", "gated"]  # norm and gated product of the other half of a block
# mixer -> (its use, its operations with kernels between the block's norm and its last product)
MIXERS = {
    "gated_deltanet": (
        "{use: gated_deltanet, n_heads: 2, head_dim: 32}",
        ["conv_act_norm", "gated_deltanet_beta_decay", "chunk", "rmsnorm"],
    ),
    "kda": ("{use: kda, n_heads: 2, head_dim: 32}", ["conv_act_norm", "kda_beta_decay", "chunk", "rmsnorm"]),
    "hgrn": ("{use: hgrn}", ["hgrn_decay_h", "scan", "rmsnorm"]),
    "linear_attention": (
        "{use: linear_attention, n_heads: 2}",
        ["linear_attention_phi_q", "linear_attention_phi_k", "normalized"],
    ),
}
# Operations of torch that move whole tiles of activations, or are a launch of their own for a number of each head: a
# layer has none of these beside its kernels.
WHOLE = (
    "conv",
    "silu",
    "sigmoid",
    "norm",
    "cat",
    "cumsum",
    "constant_pad",
    "copy_",
    "clone",
    "pow",
    "div.Tensor",
)
BACK = {"gated": "glu_backward", "chunk": "chunk_reverse", "normalized": "normalized_reverse"}


@pytest.mark.parametrize("name", MIXERS)
def test_a_layer_takes_its_kernels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each producer once, norms with their gates, and nothing of torch that goes through q, k or v again."""
    mixer, wanted = MIXERS[name]
    package = f"layer_{name}"
    spec = tmp_path / f"{name}.yaml"
    spec.write_text(
        f"archc: 1\nname: {package}\nmodel: {{vocab_size: 64, d_model: 64, n_layers: 1, context: 128, norm: rmsnorm}}\n"
        f"blocks:\n  main:\n    mixer: {mixer}\n    mlp: {{use: swiglu}}\n"
    )
    folder = tmp_path / package
    folder.mkdir()
    for path, text in package_files(graph_of(spec), target=load_target("h100")).items():
        (folder / path).write_text(text)
    model = imported(package, tmp_path).Model().bfloat16().to("meta")
    trace = Trace()
    with monkeypatch.context() as patch, trace:
        patch.setattr(torch.Tensor, "is_cuda", True, raising=False)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch, "is_autocast_enabled", lambda *device: False)
        logits = model(torch.zeros(2, 70, dtype=torch.int64, device="meta"))
        forward = len(trace.launches)
        logits.sum().backward()
    assert trace.elsewhere == []
    ahead, behind = trace.launches[:forward], trace.launches[forward:]
    kernels = ["rmsnorm", *wanted, *BLOCK, "rmsnorm"]
    assert ours(ahead, package) == kernels
    assert ours(behind, package) == [BACK.get(kernel, f"{kernel}_backward") for kernel in reversed(kernels)]
    others = [call for call in ahead if call.startswith("aten::")]
    left = [call.split("(")[0] for call in others if any(word in call.split("(")[0] for word in WHOLE)]
    assert left == []


def ours(calls: list[str], package: str) -> list[Any]:
    """The operations of the package itself."""
    return [call.split("(")[0].split("::")[1] for call in calls if call.startswith(package)]
