"""A small model around a single body, so that a file with one mixer can be checked and built by itself."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product

from archc.spec.expressions import Expr
from archc.spec.spec import Body, Param
from archc.spec.unparse import unparse
from archc.spec.values import STATICS, free_names, show

# Tried in this order for `d_model` and for whole numbers that the body requires and gives no default.
WIDTHS = (256, 512, 1024, 2048)
NUMBERS = (4, 2, 1, 8, 16)
AXES = (4, 16, 8, 32)  # sizes of the axes that a function leaves open, in order of their appearance


def small_models(body: Body) -> Iterator[str]:
    """YAML texts of models of two layers around `body`, the plainest first."""
    guesses = NUMBERS if any(param.required for param in body.params.values()) else NUMBERS[:1]
    for guess, width in product(guesses, WIDTHS):
        yield "\n".join(
            [
                "archc: 1",
                f"name: {body.name}",
                "model:",
                "  vocab_size: 256",
                f"  d_model: {width}",
                "  n_layers: 2",
                "  context: 256",
                "blocks:",
                "  main:",
                *("    " + line for line in _block(body, guess)),
                "",
            ]
        )


def _block(body: Body, guess: int) -> list[str]:
    arguments = [f"{param.name}: {_guess(param, guess)}" for param in body.params.values() if param.required]
    fills = [line for slot in body.slots for line in (f"{slot}:", "  body:", "    y: linear(x, d_model)")]
    if body.kind == "block":
        return [f"block: {body.name}", *arguments, *fills]
    sizes = {name: AXES[i % len(AXES)] for i, name in enumerate(_open_axes(body))}
    lines = ["sizes:", *(f"  {name}: {size}" for name, size in sizes.items())] if sizes else []
    names = [f"{item.name}_in" for item in body.inputs]
    lines += ["body:", "  u_normed: norm(x)"]
    for name, item in zip(names, body.inputs, strict=True):
        axes = (
            [unparse(axis) for axis in item.axes.items if unparse(axis) != "..."]
            if item.axes
            else ["d_model"]
        )
        plain = item.axes is None or axes == ["d_model"]
        lines.append(
            f"  {name}: u_normed"
            if plain
            else f"  {name}: linear(u_normed, [{', '.join(axes or ['width'])}])"
        )
    if body.kind == "function":
        given = [
            f"{param.name}={_word(param, guess, sizes)}" for param in body.params.values() if param.required
        ]
        return [*lines, f"  y: x + linear({body.name}({', '.join([*names, *given])}), d_model)"]
    return [
        *lines,
        f"  y: x + {body.kind}({', '.join(names)})",
        f"{body.kind}:",
        f"  use: {body.name}",
        *("  " + line for line in (*arguments, *fills)),
    ]


def _open_axes(body: Body) -> list[str]:
    """The axes of a function's inputs that a caller decides; `width` where every axis is left open."""
    if body.kind != "function":
        return []
    names: dict[str, None] = {}
    for item in body.inputs:
        axes: tuple[Expr, ...] = item.axes.items if item.axes else ()
        found = [node.id for axis in axes for node in free_names(axis) if node.id != "..."]
        closed = STATICS | body.params.keys() | body.sizes.keys()
        names.update(dict.fromkeys(name for name in found if name not in closed))
        if not [axis for axis in axes if unparse(axis) != "..."] and item.axes is not None:
            names["width"] = None
    return list(names)


def _guess(param: Param, guess: int) -> str:
    if param.type == "int":
        return show(_clamped(param, Fraction(guess)))
    if param.type == "number":
        return show(_clamped(param, Fraction(1)))
    if param.type == "list":
        return "[" + ", ".join(["1"] * (param.length or 1)) + "]"
    if param.type == "mapping":
        return (
            "{"
            + ", ".join(f"{e.name}: {_guess(e, guess)}" for e in param.entries.values() if e.required)
            + "}"
        )
    return {"bool": "false", "choice": (*param.choices, "none")[0], "function": "tanh"}.get(
        param.type, "none"
    )


def _word(param: Param, guess: int, sizes: dict[str, int]) -> str:
    if param.type == "axes":
        return f"[{next(reversed(sizes), 'd_model')}]"
    value = _guess(param, guess)
    return f'"{value}"' if param.type == "choice" else value


def _clamped(param: Param, value: Fraction) -> Fraction:
    if param.maximum is not None:
        value = min(value, param.maximum)
    return value if param.minimum is None else max(value, param.minimum)
