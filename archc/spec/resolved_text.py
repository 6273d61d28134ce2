"""A resolved spec as YAML: self-contained, stable, and loading to the same spec."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import groupby

from archc.spec.bodies import NEED_INPUTS
from archc.spec.diagnostics import Reporter
from archc.spec.emit import Commented, to_yaml
from archc.spec.expressions import Expr
from archc.spec.scope import Scope, Unknown
from archc.spec.spec import Body, Equation, Layers, Param, Settings, Shared, Spec, Static, Use
from archc.spec.unparse import unparse
from archc.spec.values import show

Data = dict[str, object]


def resolved_text(spec: Spec) -> str:
    """What a spec came to, as YAML without `extends` and without anything that a library holds.

    Every body that the model uses stands in it; parameters that keep their defaults are listed with the body
    that declares them. What follows from the arguments of a use, sizes and derived defaults, stands behind it
    as a comment. The text depends on the content of the spec alone, and loading it gives an equal spec.
    """
    said = {"title": spec.title, "source": spec.source}
    data: Data = {"archc": 1, "name": spec.name, **{key: text for key, text in said.items() if text}}
    data["model"] = _settings(spec.settings)
    if spec.init is not None:
        data["init"] = unparse(spec.init)
    uses = (*spec.blocks.values(), *spec.shared.values())
    bodies = _bodies(uses)
    for kind in ("mixer", "mlp"):
        section = {name: _body(body) for (each, name), body in sorted(bodies.items()) if each == kind}
        if section:
            data[f"{kind}s"] = section
    if spec.functions:
        data["functions"] = {name: _body(body) for name, body in spec.functions.items()}
    blocks: Data = {name: _body(body) for (kind, name), body in sorted(bodies.items()) if kind == "block"}
    for name, use in spec.blocks.items():
        entry = blocks.pop(name, None) if use.body.name == name else None
        blocks[name] = {
            **(entry if isinstance(entry, dict) else {"block": use.body.name}),
            **_entries(use, spec.settings),
        }
    data["blocks"] = blocks
    if spec.shared:
        data["shared"] = {name: _use(use, spec.settings) for name, use in spec.shared.items()}
    data["layers"] = _layers(spec.layers)
    return to_yaml(data)


def _bodies(uses: tuple[Use, ...]) -> dict[tuple[str, str], Body]:
    """Every body by kind and name, as it is before equations are replaced in a use."""
    found: dict[tuple[str, str], Body] = {}
    for use in uses:
        for body in _bases(use):
            found[body.kind, body.name] = body
    return found


def _bases(use: Use) -> list[Body]:
    inner = [body for filled in use.slots.values() if isinstance(filled, Use) for body in _bases(filled)]
    return [use.base or use.body, *inner]


def _settings(settings: Settings) -> Data:
    data: Data = {}
    for name in Settings.__slots__:
        value = getattr(settings, name)
        default = Settings.__dataclass_fields__[name].default
        if isinstance(value, str | bool | int) or value != default:
            data[name] = value if isinstance(value, str | bool | int) else _value(value)
    return data


def _value(value: Expr | Static) -> object:
    """A static or an expression as a node of YAML that reads back as the same."""
    if isinstance(value, Expr):
        return unparse(value)
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _value(item) for name, item in value.items()}
    return value if isinstance(value, bool) or value is None or isinstance(value, float) else show(value)


def _use(use: Use, settings: Settings) -> Data:
    return Commented({"use": use.body.name, **_entries(use, settings)}, _derived(use, settings))


def _derived(use: Use, settings: Settings) -> str:
    """The numbers that follow from the arguments of a use: "n_kv_heads 4, head_dim 64"."""
    statics: dict[str, Static] = {
        "d_model": Fraction(settings.d_model),
        "n_layers": Fraction(settings.n_layers),
    }
    scope = Scope(use, statics, Reporter())
    names = [
        name for name in use.body.params if name not in use.given and isinstance(use.arguments[name], Expr)
    ]
    found = []
    for name in (*names, *use.body.sizes):
        try:
            found.append(f"{name} {show(scope.value(name))}")
        except Unknown:
            continue
    return ", ".join(found)


def _entries(use: Use, settings: Settings) -> Data:
    """What a user wrote at a use: arguments, slots, replaced equations."""
    data: Data = {name: _value(value) for name, value in use.arguments.items() if name in use.given}
    if use.init is not None:
        data["init"] = unparse(use.init)
    for slot, filled in use.slots.items():
        if isinstance(filled, Shared):
            data[slot] = {"shared": list(filled.names)}
        else:
            data[slot] = _use(filled, settings)
    if use.base is not None:
        kept = set(use.base.equations)
        data["body"] = _equations(tuple(equation for equation in use.body.equations if equation not in kept))
    return data


def _equations(equations: tuple[Equation, ...]) -> Data:
    return {", ".join(target.name for target in equation.targets): equation.text for equation in equations}


def _body(body: Body) -> Data:
    data: Data = {}
    if body.title:
        data["title"] = body.title
    if body.source:
        data["source"] = body.source
    if body.kind in NEED_INPUTS or any(item.axes is not None for item in body.inputs):
        data["inputs"] = {
            item.name: f"[{', '.join(unparse(a) for a in item.axes.items)}]" if item.axes else "[d_model]"
            for item in body.inputs
        }
    if body.params:
        data["params"] = {name: _param(param) for name, param in body.params.items()}
    if body.sizes:
        data["sizes"] = {name: unparse(expr) for name, expr in body.sizes.items()}
    if body.slots or body.kind == "block":
        data["slots"] = {
            name: kinds[0] if len(kinds) == 1 else list(kinds) for name, kinds in body.slots.items()
        }
    if body.parts:
        data["parts"] = {name: _body(part) for name, part in body.parts.items()}
    if body.exports:
        data["export"] = [target.name for target in body.exports]
    if body.init is not None:
        data["init"] = unparse(body.init)
    data["body"] = _equations(body.equations)
    if body.losses:
        data["losses"] = _equations(body.losses)
    if body.updates:
        data["updates"] = _equations(body.updates)
    return data


def _param(param: Param) -> Data:
    data: Data = {"type": param.type}
    if param.choices:
        data["of"] = list(param.choices)
    elif param.of:
        data["of"] = param.of
    if param.length is not None:
        data["length"] = param.length
    if not param.required:
        data["default"] = _value(param.default)
    if param.minimum is not None:
        data["min"] = param.minimum
    if param.maximum is not None:
        data["max"] = param.maximum
    if param.divides is not None:
        data["divides"] = unparse(param.divides)
    if param.entries:
        data["entries"] = {name: _param(entry) for name, entry in param.entries.items()}
    if param.help:
        data["help"] = param.help
    return data


def _layers(layers: Layers) -> object:
    """A cycle as a list; a listed order as the most frequent block and the places of the others."""
    if layers.cycle:
        return [f"{count} {name}" if count > 1 else name for name, count in layers.cycle]
    default = max(dict.fromkeys(layers.names), key=layers.names.count)
    found: dict[str, object] = {"default": default}
    start = 0
    for name, group in groupby(layers.names):
        count = len(list(group))
        if name != default:
            places = found.setdefault(name, [])
            assert isinstance(places, list)
            places.append(str(start) if count == 1 else f"{start}-{start + count - 1}")
        start += count
    return found
