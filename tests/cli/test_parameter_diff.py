"""Comparing the parameters of two models."""

from __future__ import annotations

from archc.cli.parameter_diff import compare, summarise


def layered(template: str, shape: tuple[int, ...], layers: int = 4) -> dict[str, tuple[int, ...]]:
    return {template.format(layer): shape for layer in range(layers)}


def test_kept_reshaped_new_and_gone() -> None:
    old = {"embedding.weight": (32, 8), "head.weight": (32, 8), **layered("layers.{}.mixer.q.weight", (8, 8))}
    new = {
        "embedding.weight": (64, 8),
        "layers.0.mixer.gate.weight": (3, 8),
        **layered("layers.{}.mixer.q.weight", (8, 8)),
    }
    found = compare(old, new)
    assert found.kept == tuple(layered("layers.{}.mixer.q.weight", (8, 8)))
    assert found.reshaped == {"embedding.weight": ((32, 8), (64, 8))}
    assert found.new == {"layers.0.mixer.gate.weight": (3, 8)} and found.gone == {"head.weight": (32, 8)}
    assert not found.renamed


def test_a_rename_needs_one_shape_and_the_same_layers() -> None:
    old = layered("layers.{}.mixer.beta.weight", (4, 8)) | layered("layers.{}.mixer.k.weight", (8, 8))
    new = layered("layers.{}.mixer.rate.weight", (4, 8)) | layered(
        "layers.{}.mixer.key.weight", (8, 8), layers=3
    )
    found = compare(old, new)
    assert found.renamed == {
        f"layers.{n}.mixer.beta.weight": f"layers.{n}.mixer.rate.weight" for n in range(4)
    }
    assert set(found.gone) == set(layered("layers.{}.mixer.k.weight", (8, 8)))


def test_the_most_alike_names_are_paired() -> None:
    old = {"mixer.query.weight": (8, 8), "mixer.value.weight": (8, 8)}
    new = {"mixer.value_proj.weight": (8, 8), "mixer.query_proj.weight": (8, 8)}
    assert compare(old, new).renamed == {
        "mixer.query.weight": "mixer.query_proj.weight",
        "mixer.value.weight": "mixer.value_proj.weight",
    }


def test_unlike_names_are_no_rename() -> None:
    assert not compare({"embedding": (8,)}, {"layers.0.mlp.u": (8,)}).renamed


def test_layers_are_folded() -> None:
    names = [f"layers.{n}.mixer.q" for n in (0, 1, 2, 4)] + ["norm", "layers.7.mlp.up"]
    assert summarise(names) == ["layers.{0-2,4}.mixer.q", "norm", "layers.7.mlp.up"]
