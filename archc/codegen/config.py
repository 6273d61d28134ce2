"""The numbers of a model: fields of one dataclass, and properties for what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from archc.graph.types import Graph, Module
from archc.spec import statics
from archc.spec.python_source import python_names, to_python
from archc.spec.spec import Static

MODEL_FIELDS = ("vocab_size", "d_model", "n_layers", "context")


@dataclass(slots=True)
class ConfigView:
    """What the template of `config.py` shows."""

    fields: list[tuple[str, str, str, str]] = field(default_factory=list)  # name, type, value, comment
    properties: list[tuple[str, str, str, str]] = field(default_factory=list)  # name, type, source, comment
    fixed: list[tuple[str, str]] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)


def config_view(graph: Graph, used: Mapping[str, Iterable[str]]) -> ConfigView:
    """Fields and properties. `used`: for each prefix the static names that its classes read."""
    found = ConfigView()
    settings = graph.settings
    helps = {
        "vocab_size": "tokens of the vocabulary",
        "d_model": "width of the residual stream",
        "n_layers": "layers",
        "context": "tokens the model was made for",
    }
    for name in MODEL_FIELDS:
        found.fields.append((name, "int", str(getattr(settings, name)), helps[name]))
    for prefix, names in used.items():
        module = next(m for m in graph.modules.values() if m.prefix == prefix and m.body.kind != "part")
        _module(found, module, names)
    return found


def _module(found: ConfigView, module: Module, used: Iterable[str]) -> None:
    wanted = _closure(module, used)
    in_sizes = {
        name
        for name in wanted
        for definition in [module.definitions.get(name)]
        if definition is not None
        for name in statics.free_names(definition)
    }
    for name in [
        *(n for n in module.body.params if n in wanted),
        *(n for n in module.body.sizes if n in wanted),
        *sorted(n for n in wanted if "." in n),
    ]:
        full = f"{module.prefix}_{name.replace('.', '_')}"
        definition = module.definitions.get(name)
        comment = module.body.params[name].help if name in module.body.params else ""
        value = module.value(name)
        whole = isinstance(value, Fraction) and value.denominator == 1
        if definition is None:
            exact = name in in_sizes and not whole
            found.fields.append(
                (full, "Fraction" if exact else "int" if whole else "float", literal(value, exact), comment)
            )
            if exact:
                found.imports.add("Fraction")
            continue
        source = to_python(
            definition,
            lambda other: (
                f"self.{other}"
                if other in MODEL_FIELDS
                else f"self.{module.prefix}_{other.replace('.', '_')}"
            ),
        )
        names = python_names(definition)
        found.imports |= names
        if whole:
            if names - {"math"} or any(module.may_be_exact(n) for n in statics.free_names(definition)):
                source = f'whole({source}, "{full}")'
                found.imports.add("whole")
        else:
            source = f"float({source})"
        found.properties.append((full, "int" if whole else "float", source, comment or _text(module, name)))


def _closure(module: Module, used: Iterable[str]) -> list[str]:
    """The names read, and those that their definitions read."""
    pending = [name for name in used if name not in MODEL_FIELDS and name not in ("layer", "site", "n_sites")]
    found: dict[str, None] = {}
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found[name] = None
        definition = module.definitions.get(name)
        if definition is not None:
            pending += [
                n
                for n in statics.free_names(definition)
                if n not in MODEL_FIELDS and (n in module.body.params or n in module.body.sizes)
            ]
    return list(found)


def _text(module: Module, name: str) -> str:
    return ""


def literal(value: Static, exact: bool = False) -> str:
    """A number as Python source."""
    if isinstance(value, Fraction):
        if value.denominator == 1:
            return str(int(value))
        return f"Fraction({value.numerator}, {value.denominator})" if exact else repr(float(value))
    if isinstance(value, float):
        return f'float("{value}")'
    return repr(value)
