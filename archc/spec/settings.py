"""The `model:` section: sizes and options of the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from archc.spec.diagnostics import NOWHERE, Reporter, Span
from archc.spec.expressions import Expr
from archc.spec.fields import Fields, read_whole
from archc.spec.layers import MAX_LAYERS
from archc.spec.spec import Param, Settings, Static
from archc.spec.values import read_value
from archc.spec.yaml_nodes import YMapping, YNode

KEYS = (
    "vocab_size",
    "d_model",
    "n_layers",
    "context",
    "tie_embeddings",
    "norm",
    "norm_eps",
    "embedding_norm",
    "embedding_scale",
    "logit_scale",
    "logit_softcap",
    "causal",
)
MAX_SIZE = 10**9


@dataclass(frozen=True, slots=True)
class ModelSection:
    """`model:` as far as it can be read before the layers are known."""

    values: dict[str, Expr | Static]
    n_layers: int | None
    n_layers_span: Span
    span: Span

    def statics(self) -> dict[str, Static]:
        """The names of the model that expressions in bodies can use."""
        d_model = self.values.get("d_model")
        return {"d_model": d_model} if isinstance(d_model, Fraction) else {}

    def settings(self, n_layers: int) -> Settings | None:
        """The settings, or None if a required one is missing, which has been reported."""
        value = self.values
        if not {"vocab_size", "d_model", "context"} <= value.keys():
            return None
        soft = value.get("logit_softcap")
        return Settings(
            vocab_size=_int(value["vocab_size"]),
            d_model=_int(value["d_model"]),
            n_layers=n_layers,
            context=_int(value["context"]),
            tie_embeddings=value.get("tie_embeddings", False) is True,
            norm=str(value.get("norm", "rmsnorm")),
            norm_eps=_fraction(value.get("norm_eps"), Fraction(1, 100_000)),
            embedding_norm=None if value.get("embedding_norm") is None else str(value["embedding_norm"]),
            embedding_scale=value.get("embedding_scale", Fraction(1)),
            logit_scale=value.get("logit_scale", Fraction(1)),
            logit_softcap=soft if isinstance(soft, Fraction) else None,
            causal=value.get("causal", True) is True,
        )


def _int(value: Expr | Static) -> int:
    return int(value) if isinstance(value, Fraction) else 0


def _fraction(value: Expr | Static, otherwise: Fraction) -> Fraction:
    return value if isinstance(value, Fraction) else otherwise


def read_model(node: YMapping | None, span: Span, report: Reporter) -> ModelSection:
    """Read the `model:` section; every mistake in it is reported."""
    if node is None:
        report.error(
            "E203",
            "the spec has no `model:` section",
            span,
            help="add `model: {vocab_size: 32000, d_model: 1024, n_layers: 24, context: 8192}`",
        )
        return ModelSection({}, None, NOWHERE, span)
    fields = Fields(node, "the `model:` section", report)
    values: dict[str, Expr | Static] = {}
    for name in ("vocab_size", "d_model", "context"):
        if name not in fields:
            report.error("E203", f"`model:` needs `{name}`", node.span, help=f"add `{name}: ...`")
        found = fields.take(name)
        size = _size(found, name, report) if found is not None else None
        if size is not None:
            values[name] = size
    depth_node = fields.take_scalar("n_layers", "a whole number")
    depth = read_whole(depth_node, "n_layers", 1, MAX_LAYERS, report) if depth_node is not None else None
    for name in ("tie_embeddings", "causal"):
        _read(fields, Param(name, node.span, "bool", required=True), values, report)
    for name in ("norm", "embedding_norm"):
        word = fields.take_word(name, "the name of a norm")
        if word is not None and not (name == "embedding_norm" and word.text == "none"):
            values[name] = word.text
    for name in ("embedding_scale", "logit_scale", "norm_eps"):
        _read(fields, Param(name, node.span, "number", required=True), values, report)
    _read(fields, Param("logit_softcap", node.span, "number"), values, report)
    for name in ("norm_eps", "logit_softcap"):
        value = values.get(name)
        if value is not None and not (isinstance(value, Fraction) and value > 0):
            found = node.get(name)
            report.error("E206", f"`{name}` needs a number above zero", found.span if found else node.span)
    fields.finish(KEYS)
    return ModelSection(values, depth, depth_node.span if depth_node is not None else NOWHERE, node.span)


def _size(node: YNode, name: str, report: Reporter) -> Fraction | None:
    read, value = read_value(node, Param(name, node.span, "number", required=True), report)
    if not read:
        return None
    if not isinstance(value, Fraction) or value.denominator != 1:
        report.error("E205", f"`{name}` needs a whole number", node.span)
        return None
    if not 1 <= value <= MAX_SIZE:
        report.error("E206", f"`{name}` is {value}, outside 1 to {MAX_SIZE:,}", node.span)
        return None
    return value


def _read(fields: Fields, param: Param, values: dict[str, Expr | Static], report: Reporter) -> None:
    node = fields.take(param.name)
    if node is not None:
        read, value = read_value(node, param, report)
        if read:
            values[param.name] = value
