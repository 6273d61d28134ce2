"""A use of a body with its arguments bound: its static names as expressions and as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from archc.graph.types import Module
from archc.spec import expressions as ex
from archc.spec import statics
from archc.spec.diagnostics import NOWHERE, Reporter
from archc.spec.rewrite import literal
from archc.spec.spec import Settings, Static, Use

MODEL_NAMES = ("d_model", "n_layers", "vocab_size", "context")


@dataclass(slots=True)
class Instance:
    """A use of a body: its static names as expressions and as values, and the classes made of it so far."""

    use: Use
    prefix: str
    statics: dict[str, ex.Expr]
    sizes: dict[str, ex.Expr]
    values: dict[str, Static]
    n_sites: int = 0
    variants: list[Module] = field(default_factory=list)


def statics_of(
    use: Use, settings: Settings, report: Reporter
) -> tuple[dict[str, ex.Expr], dict[str, ex.Expr], dict[str, Static]]:
    """Static names of a use: name -> expression read in equations, name -> definition, name -> value."""
    definitions: dict[str, ex.Expr | Static] = {
        name: use.arguments.get(name, param.default) for name, param in use.body.params.items()
    }
    definitions |= use.body.sizes
    values: dict[str, Static] = dict(_model_values(settings))
    names: dict[str, ex.Expr] = {name: ex.Name(NOWHERE, name) for name in MODEL_NAMES}
    sizes: dict[str, ex.Expr] = {}
    busy: set[str] = set()

    def value_of(name: str) -> Any:
        if name in values or name not in definitions:
            return values.get(name)
        definition = definitions[name]
        if isinstance(definition, ex.Expr) and name not in busy:
            busy.add(name)
            for other in statics.free_names(definition):
                value_of(other)
            values[name] = statics.evaluate(definition, values, report)
        elif not isinstance(definition, ex.Expr):
            values[name] = definition
        return values.get(name)

    for name, definition in definitions.items():
        value = value_of(name)
        span = definition.span if isinstance(definition, ex.Expr) else use.span
        if (
            isinstance(definition, ex.Expr)
            and isinstance(value, (Fraction, float))
            and not isinstance(value, bool)
            and not isinstance(definition, ex.Number)
        ):
            sizes[name] = definition
            names[name] = ex.Name(span, name)
        elif isinstance(value, (Fraction, float)) and not isinstance(value, bool):
            names[name] = ex.Name(span, name)
        else:
            names[name] = literal(value, span) or ex.Name(span, name)
    for name in ("n_sites",):
        names[name] = ex.Name(NOWHERE, name)
    return names, sizes, values


def _model_values(settings: Settings) -> dict[str, Static]:
    return {
        "d_model": Fraction(settings.d_model),
        "n_layers": Fraction(settings.n_layers),
        "vocab_size": Fraction(settings.vocab_size),
        "context": Fraction(settings.context),
    }
