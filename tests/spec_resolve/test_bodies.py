"""Bodies and uses: arguments, defaults, replaced equations, slots, single files, functions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from helpers import BLOCKS, MODEL, codes_of, content, spec_of

from archc.spec.diagnostics import Reporter
from archc.spec.expressions import Binary, Expr, Name
from archc.spec.library import installed_folders
from archc.spec.resolve import load
from archc.spec.spec import Shared, Use


def mixer_of(text: str, block: str = "a") -> Use:
    use = spec_of(text).blocks[block].slots["mixer"]
    assert isinstance(use, Use)
    return use


def with_mixer(entry: str) -> str:
    return MODEL + "blocks:\n  a:\n    mixer: " + entry + "\n    mlp: {use: wide}\n"


def test_arguments_hold_given_values_and_defaults() -> None:
    use = mixer_of(MODEL + BLOCKS + "layers: [a, b]\n", "b")
    assert use.arguments == {"n_heads": Fraction(2), "scale": Fraction(1, 2)}
    assert use.given == {"n_heads"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/3", Fraction(8, 3)),
        ("0.1", Fraction(1, 10)),
        ("1e-6", Fraction(1, 10**6)),
        ("-2", Fraction(-2)),
        ("(1 + 2) / 4", Fraction(3, 4)),
        ("1.50", Fraction(3, 2)),
    ],
)
def test_numbers_are_exact(text: str, value: Fraction) -> None:
    assert mixer_of(with_mixer(f"{{use: mix, scale: {text}}}")).arguments["scale"] == value


def test_an_argument_may_speak_the_names_of_the_body() -> None:
    scale = mixer_of(with_mixer("{use: mix, scale: head_dim / d_model}")).arguments["scale"]
    assert isinstance(scale, Binary) and [n.id for n in scale.walk() if isinstance(n, Name)] == [
        "head_dim",
        "d_model",
    ]


def test_an_argument_that_is_worked_out_is_checked() -> None:
    assert codes_of(with_mixer("{use: mix, n_heads: d_model / 128}")) == ["E222"]
    assert codes_of(with_mixer("{use: mix, n_heads: d_model - 64}")) == ["E223"]


def test_what_differs_by_layer_is_left_to_the_layers() -> None:
    value = mixer_of(with_mixer("{use: mix, scale: 1 / (layer + 1)}")).arguments["scale"]
    assert isinstance(value, Expr)


def test_replaced_equations_keep_the_rest_and_their_order() -> None:
    use = mixer_of(with_mixer("\n      use: mix\n      body:\n        o: v * tanh(g)"))
    assert use.base is not None
    assert [e.text for e in use.body.equations] == [
        use.base.equations[0].text,
        "v * tanh(g)",
        use.base.equations[2].text,
    ]
    assert use.base.equations[1].text == "v * sigmoid(g)"


def test_a_key_with_several_targets_is_replaced_whole() -> None:
    replaced = "\n      use: mix\n      body:\n        {}: split(x, [n_heads, head_dim], [n_heads, head_dim])"
    assert mixer_of(with_mixer(replaced.format("v, g"))).body.equations[0].text.startswith("split(x")
    assert codes_of(with_mixer(replaced.format("g, v"))) == ["E236"]
    assert codes_of(with_mixer(replaced.format("v"))) == ["E236"]


def test_a_body_may_stand_in_its_slot() -> None:
    use = mixer_of(with_mixer("\n      body:\n        y: linear(x, d_model)"))
    assert use.body.kind == "mixer" and use.body.name == "a_mixer" and len(use.body.equations) == 1


def test_default_block_has_two_sublayers_or_one() -> None:
    spec = spec_of(
        MODEL
        + "blocks:\n  a: {mixer: {use: mix}, mlp: {use: wide}}\n  b: {mixer: {use: wide}}\nlayers: [a, b]\n"
    )
    assert spec.blocks["a"].body.name == "pre_norm"
    assert [(e.targets[0].name, e.text) for e in spec.blocks["a"].body.equations] == [
        ("h", "x + mixer(norm(x))"),
        ("y", "h + mlp(norm(h))"),
    ]
    assert spec.blocks["b"].body.name == "pre_norm_single"
    inner = spec.blocks["b"].slots["mixer"]
    assert isinstance(inner, Use) and inner.body.kind == "mlp"


@pytest.mark.parametrize("key", ["block", "use"])
def test_a_block_names_its_body(key: str) -> None:
    spec = spec_of(MODEL + f"blocks:\n  a: {{{key}: parallel, mixer: {{use: mix}}, mlp: {{use: wide}}}}\n")
    assert spec.blocks["a"].body.name == "parallel"


def test_one_body_for_all_blocks() -> None:
    common = "block:\n  slots: {inner: [mixer, mlp]}\n  body:\n    y: x + inner(norm(x))\n"
    spec = spec_of(
        MODEL + common + "blocks:\n  a: {inner: {use: mix}}\n  b: {inner: {use: wide}}\nlayers: [a, b]\n"
    )
    assert spec.blocks["a"].body == spec.blocks["b"].body
    assert (
        spec_of(MODEL + "block: sandwich_norm" + BLOCKS + "layers: [a, b]\n").blocks["a"].body.name
        == "sandwich_norm"
    )


def test_a_block_can_lend_its_body_and_take_arguments() -> None:
    text = (
        MODEL
        + """
blocks:
  scaled:
    params: {gain: {type: number, default: 1}}
    slots: {inner: mixer}
    body:
      y: x + inner(norm(x)) * gain
  a: {block: scaled, gain: 0.5, inner: {use: mix}}
  b: {block: scaled, inner: {use: mix}}
layers: [3 a, b]
"""
    )
    spec = spec_of(text)
    assert list(spec.blocks) == ["a", "b"]
    assert spec.blocks["a"].arguments == {"gain": Fraction(1, 2)}
    assert spec.blocks["b"].arguments == {"gain": Fraction(1)} and not spec.blocks["b"].given


def test_shared_bodies_alternate() -> None:
    text = (
        MODEL
        + """
shared:
  A: {use: mix}
  B: {use: mix, n_heads: 2}
blocks:
  a:
    mixer: {shared: [A, B]}
    mlp: {use: wide}
    body:
      h: x + mixer(norm(concat(x, embedding)))
      y: h + mlp(norm(h))
"""
    )
    spec = spec_of(text)
    filled = spec.blocks["a"].slots["mixer"]
    assert isinstance(filled, Shared) and filled.names == ("A", "B")
    assert spec.shared["B"].arguments["n_heads"] == 2


def test_mapping_parameters_take_declared_entries() -> None:
    text = MODEL.replace(
        "      scale:",
        "      rope: {type: mapping, default: none, entries: {theta: {type: number}, "
        "fraction: {type: number, default: 1}}}\n      scale:",
    )
    text += "blocks:\n  a: {mixer: {use: mix, rope: {theta: 500000}}}\n"
    assert mixer_of(text).arguments["rope"] == {"theta": Fraction(500000), "fraction": Fraction(1)}
    assert codes_of(text.replace("theta: 500000", "tehta: 500000")) == ["E220"]
    assert mixer_of(text.replace("{theta: 500000}", "none")).arguments["rope"] is None


@pytest.mark.parametrize(
    ("default", "kind"),
    [
        ("16", "int"),
        ("1.5", "number"),
        ("true", "bool"),
        ("none", "any"),
        ("[1, 2]", "list"),
        ("half", "text"),
        ("d_model / 2", "number"),
        ("ceil(d_model / 3)", "int"),
        ("n_heads", "int"),
        ("{theta: 1.5}", "mapping"),
        ("8/3", "number"),
    ],
)
def test_a_short_declaration_has_the_type_of_its_default(default: str, kind: str) -> None:
    text = (
        MODEL.replace("      scale:", f"      other: {default}\n      scale:")
        + "blocks:\n  a: {mixer: {use: mix}}\n"
    )
    assert mixer_of(text).body.params["other"].type == kind


def test_functions_are_those_that_are_reached(tmp_path: Path) -> None:
    (tmp_path / "functions").mkdir()
    for name, body in {
        "outer": "twice(u) + 1",
        "twice": "2 * u",
        "unused": "u",
        "gelu_like": "u * 2",
    }.items():
        (tmp_path / "functions" / f"{name}.yaml").write_text(
            f'function: {name}\ninputs: {{u: "[...]"}}\nbody:\n  y: {body}\n'
        )
    text = MODEL.replace("silu(up)", "outer(up)") + "blocks:\n  a: {mixer: {use: mix}, mlp: {use: wide}}\n"
    assert list(spec_of(text, tmp_path).functions) == ["outer", "twice"]
    named = text.replace(
        "params: {expansion: 4}", "params: {expansion: 4, act: {type: function, default: gelu_like}}"
    )
    named = named.replace("outer(up)", "act(up)")
    assert list(spec_of(named, tmp_path).functions) == ["gelu_like"]
    assert list(spec_of(named.replace("{use: wide}", "{use: wide, act: twice}"), tmp_path).functions) == [
        "gelu_like",
        "twice",
    ]


def test_own_bodies_come_before_the_library_and_files_before_archcs(tmp_path: Path) -> None:
    (tmp_path / "mixers").mkdir()
    (tmp_path / "mixers" / "attention.yaml").write_text("mixer: attention\nbody:\n  y: linear(x, d_model)\n")
    text = MODEL + "blocks:\n  a: {mixer: {use: attention}}\n"
    use = spec_of(text, tmp_path).blocks["a"].slots["mixer"]
    assert isinstance(use, Use) and len(use.body.equations) == 1
    own = text.replace(
        "mixers:\n", "mixers:\n  attention:\n    body:\n      a: x\n      y: linear(a, d_model)\n"
    )
    use = spec_of(own, tmp_path).blocks["a"].slots["mixer"]
    assert isinstance(use, Use) and len(use.body.equations) == 2


def test_archc_toml_names_libraries(tmp_path: Path) -> None:
    (tmp_path / "lib" / "mixers").mkdir(parents=True)
    (tmp_path / "lib" / "mixers" / "far.yaml").write_text("mixer: far\nbody:\n  y: linear(x, d_model)\n")
    (tmp_path / "project" / "deep").mkdir(parents=True)
    (tmp_path / "archc.toml").write_text('[library]\nfolders = ["lib"]\n')
    assert spec_of(MODEL + "blocks:\n  a: {mixer: {use: far}}\n", tmp_path / "project" / "deep").blocks


@pytest.mark.parametrize("value", ["package_of_mixers", "package_of_mixers:lib"])
def test_installed_packages_bring_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    folder = tmp_path / "package_of_mixers" / ("lib" if ":" in value else ".") / "mixers"
    folder.mkdir(parents=True)
    (tmp_path / "package_of_mixers" / "__init__.py").write_text(
        "raise RuntimeError('a library is not imported')\n"
    )
    (folder / "far.yaml").write_text("mixer: far\nbody:\n  y: linear(x, d_model)\n")
    metadata = tmp_path / "package_of_mixers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: package-of-mixers\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[archc.library]\nfar = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed_folders.cache_clear()
    try:
        assert spec_of(MODEL + "blocks:\n  a: {mixer: {use: far}}\n").blocks
    finally:
        installed_folders.cache_clear()


@pytest.mark.parametrize(
    "source", ["a\0b.yaml", "nowhere.yaml", ".", {"model": object()}, {"layers": [[["a"]]]}]
)
def test_what_cannot_be_read_is_an_error_and_no_traceback(source: object) -> None:
    report = Reporter()
    assert load(source, report) is None  # type: ignore[arg-type]
    assert report.diagnostics


def test_blocks_differ_by_more_than_case() -> None:
    assert "E231" in codes_of(MODEL + BLOCKS.replace("  b:", "  A:") + "layers: [a, A]\n")


@pytest.mark.parametrize("kind", ["mixer", "mlp", "function", "block"])
def test_a_single_body_stands_in_a_small_model(tmp_path: Path, kind: str) -> None:
    bodies = {
        "mixer": "params: {n: {type: int}, w: {type: number}}\nsizes: {m: d_model / n}\n"
        "body:\n  y: linear(x, d_model)\n",
        "mlp": "slots: {inner: mlp}\nbody:\n  y: inner(x)\n",
        "function": 'inputs: {u: "[heads, n]", v: "[..., n]"}\n'
        "params: {rank: {type: int}, out: {type: axes}}\n"
        "body:\n  y: linear(u * v, out)\n",
        "block": "slots: {one: mixer, two: [mixer, mlp]}\nbody:\n  y: x + one(norm(x)) + two(x)\n",
    }
    path = tmp_path / "mine.yaml"
    path.write_text(f"{kind}: mine\n{bodies[kind]}")
    report = Reporter()
    spec = load(path, report)
    assert spec is not None, report.diagnostics
    assert spec.name == "mine" and spec.settings.n_layers == 2
    reached = [
        *spec.functions,
        *(u.body.name for b in spec.blocks.values() for u in b.slots.values() if isinstance(u, Use)),
        *(b.body.name for b in spec.blocks.values()),
    ]
    assert "mine" in reached


def test_a_mapping_gives_the_same_spec_as_its_text() -> None:
    data = {
        "archc": 1,
        "name": "small",
        "model": {"vocab_size": 256, "d_model": 64, "n_layers": 4, "context": 128},
        "mixers": {
            "mine": {
                "params": {"n_heads": {"type": "int", "default": None}, "gain": Fraction(1, 3), "rate": 0.1},
                "body": {
                    "a, b": "split(linear(x, 2 * d_model, name=both), d_model, d_model)",
                    "y": "-linear(a * b, d_model)",
                },
            }
        },
        "blocks": {"main": {"mixer": {"use": "mine", "n_heads": None, "gain": 2.5}}},
        "layers": ["4 main"],
    }
    report = Reporter()
    spec = load(data, report)
    assert spec is not None, report.diagnostics
    use = spec.blocks["main"].slots["mixer"]
    assert isinstance(use, Use)
    assert use.arguments == {"n_heads": None, "gain": Fraction(5, 2), "rate": Fraction(1, 10)}
    assert content(spec.layers.names) == ["main"] * 4


def test_errors_in_a_mapping_have_places_and_text() -> None:
    report, sources = Reporter(), dict[str, str]()
    assert (
        load(
            {"model": {"vocab_size": 1, "d_model": 2, "n_layers": 1, "contxt": 4}, "blocks": {}},
            report,
            sources,
        )
        is None
    )
    (found,) = [each for each in report.diagnostics if each.code == "E202"]
    assert (
        sources[found.span.path]
        .splitlines()[found.span.line - 1][found.span.column - 1 :]
        .startswith("contxt")
    )


def test_a_long_chain_of_numbers_is_refused_quickly() -> None:
    """Working one number out from the next nests calls, so its length is bounded before Python's own bound."""
    params = "".join(f"        p{i}: p{i + 1} + 0\n" for i in range(2000))
    text = (
        MODEL
        + f"blocks:\n  a:\n    mixer:\n      params:\n{params}        p2000: 1\n      body:\n        y: x\n"
    )
    assert codes_of(text) == ["E230"]


def test_a_broken_equation_is_one_mistake() -> None:
    text = MODEL.replace("y: linear(o * scale, d_model)", "y: linear(o * scale, d_model") + BLOCKS
    assert all(code.startswith("E1") for code in codes_of(text + "layers: [a, b]\n"))
