"""What the tests of resolving share: loading text, and comparing specs without their places."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from archc.spec.diagnostics import Reporter, Span
from archc.spec.resolve import load_text
from archc.spec.spec import Spec

PLACES = ("span", "function_span", "sources")

MODEL = """
archc: 1
name: small
model: {vocab_size: 256, d_model: 64, n_layers: 8, context: 128}
mixers:
  mix:
    params:
      n_heads: {type: int, default: 4, min: 1}
      scale: {type: number, default: 1/2}
    sizes:
      head_dim: d_model / n_heads
    body:
      v, g: split(linear(x, 2 * d_model, name=both), [n_heads, head_dim], [n_heads, head_dim])
      o: v * sigmoid(g)
      y: linear(o * scale, d_model)
mlps:
  wide:
    params: {expansion: 4}
    body:
      up: linear(x, expansion * d_model)
      y: linear(silu(up), d_model)
"""
BLOCKS = """
blocks:
  a: {mixer: {use: mix}, mlp: {use: wide}}
  b: {mixer: {use: mix, n_heads: 2}, mlp: {use: wide, expansion: 2}}
"""


def spec_of(text: str, folder: Path | None = None) -> Spec:
    """The spec that a text comes to; the test fails with its errors if there are any."""
    report = Reporter()
    spec = load_text(text, report, folder=folder)
    assert spec is not None, "\n".join(map(str, report.diagnostics))
    assert not report.diagnostics
    return spec


def codes_of(text: str, folder: Path | None = None) -> list[str]:
    """The codes of the errors in a text, by place; the test fails if there are none."""
    report = Reporter()
    assert load_text(text, report, folder=folder) is None
    return [each.code for each in sorted(report.diagnostics, key=lambda each: each.span)]


def content(value: object) -> object:
    """A spec, or anything in it, as plain data without places."""
    if isinstance(value, Span):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in PLACES]
        return {"is": type(value).__name__, **{name: content(getattr(value, name)) for name in fields}}
    if isinstance(value, Mapping):
        return {key: content(item) for key, item in value.items()}
    return [content(item) for item in value] if isinstance(value, tuple | list) else value
