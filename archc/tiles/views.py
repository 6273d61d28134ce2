"""What an emitted recurrence module shows: its arguments, its mathematics in words, its calls."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Row, Step

_SHAPES = {"q": "BTHK", "k": "BTHK", "v": "BTHV", "beta": "BTH", "w": "BTHK", "r": "BTHK"}
_DECAY_SHAPES = {"head": "BTH", "key": "BTHK", "value": "BTHV", "elementwise": "BTHKV"}


@dataclass(frozen=True, slots=True)
class Argument:
    """One tensor argument: its name in the operation, its axes there, and its name for callers."""

    name: str
    axes: str
    public: str

    @property
    def full(self) -> str:
        return f"{self.name}_{self.axes}"

    @property
    def tile(self) -> str:
        return f"{self.name}_M{self.axes.replace('BTH', 'C')}"

    @property
    def token(self) -> str:
        return f"{self.name}_{self.axes.replace('T', '')}"

    @property
    def flat(self) -> str:
        return f"{self.name}_A{self.axes.replace('B', '').replace('T', '').replace('H', '')}"

    @property
    def per_token(self) -> bool:
        return "T" in self.axes

    @property
    def head_axis(self) -> int:
        return self.axes.index("H")

    def at(self, index: str) -> str:
        return f"{self.full}[:, {index}]" if self.per_token else self.full


def arguments(kind: RecurrenceKind) -> list[Argument]:
    """The tensor arguments of a class's operation, in order."""
    core = kind.core()
    found = [Argument(name, _SHAPES[name], name) for name in ("q", "k", "v")]
    if core.decay != "none":
        found.append(Argument("decay", "BTHV" if kind.decay_rate else _DECAY_SHAPES[core.decay], "decay"))
    if kind.decay_rate:
        found.append(Argument("rate", "HKV", "decay_rate"))
    if core.erase == "delta":
        found.append(Argument("beta", "BTH", "beta"))
    if core.erase == "pair":
        found.append(Argument("w", "BTHK", "erase_write"))
        found.append(Argument("r", "BTHK", "erase_read"))
    return found


def kernel_arguments(kind: RecurrenceKind) -> list[Argument]:
    """The tensor arguments of a class's kernels over chunks: those of its operation, and the weight of a write.

    Under a running maximum a token writes `weight * k (v, 1)^T`; its divisor is at least `floor`.
    """
    found = arguments(kind)
    if kind.beside and kind.normalize == "max":
        found += [Argument("weight", "BTH", "weight"), Argument("floor", "BTH", "floor")]
    return found


def wrap(text: str, indent: int = 0) -> str:
    """Fill a paragraph of prose to the width of the emitted code, later lines indented."""
    joined = " ".join(text.split())
    return textwrap.fill(joined, 108 - indent, break_long_words=False).replace("\n", "\n" + " " * indent)


def public_facts(kind: RecurrenceKind, found: list[Argument]) -> dict[str, object]:
    """What the public function and the token forms show: names, shapes and calls."""
    spaced = {"B": "B", "T": "T", "F": "n", "H": "H", "K": "K", "V": "V"}
    parameters = _parameters(kind, found)
    shown = {argument.name: argument for argument in parameters}
    passed = {argument.name: argument.full for argument in found}
    if kind.normalize != "none":
        passed["v"] = "wide_BTHV"
    memory = "`key`: S [N, H, K, V]"
    memory += ", `key.normaliser` [N, H, K]" if kind.normalize != "none" else ""
    memory += ", `key.maximum` [N, H]" if kind.normalize == "max" else ""

    def tokens(index: str, v: str = "v_BTHV") -> str:
        return ", ".join(f"{v}[:, {index}]" if a.name == "v" else a.at(index) for a in found)

    heads = [f"{argument.name}.shape[{argument.head_axis}]" for argument in found]
    held = [f"{argument.full}.shape[{argument.head_axis}]" for argument in found[1:]]
    return {
        "title": TITLES[kind.decay, kind.erase],
        "definition": definition(kind),
        "legend": legend(kind),
        "axes": "Axes: B rows of the batch, T tokens, H heads, K and V the two axes of the state S, N sequences, "
        "C tokens of a chunk"
        + (", F factors of a token" if kind.factors else "")
        + (", Q queries of a group" if kind.grouped else "")
        + ".",
        "summary": "The recurrence over all tokens of the call: prefill, continuation or one decode step.",
        "shapes": ", ".join(
            f"{argument.name} [{', '.join(spaced[axis] for axis in argument.axes)}]"
            for argument in parameters
        )
        + ".",
        "heads_and_memory": "Head counts divide the largest one, H; head h of it uses head `h * n // H` of n. "
        + ("Here q has the largest; the state has the most that any other has. " if kind.grouped else "")
        + f"The memory of `place` holds, in float32 or, in a float64 model, float64, {memory}.",
        "parameters": parameters,
        "v_axes": shown["v"].axes,
        "unroll": _factors_as_tokens(kind, found, shown) if kind.factors else [],
        "group": _queries_as_tokens(kind, found) if kind.grouped else [],
        "heads_held": f"max({', '.join(held)})",
        "call": ", ".join(passed[argument.name] for argument in found),
        "names": ", ".join(argument.full for argument in found),
        "spans": ", ".join(argument.at("span") for argument in found),
        "tokens": tokens("0"),
        "tokens_t": tokens("t"),
        "tokens_s": tokens("t").replace("v_BTHV[:, t]", "v_BTHV[:, t, :, :-1]"),
        "tokens_n": tokens("t").replace("v_BTHV[:, t]", "v_BTHV[:, t, :, -1:]"),
        "heads": f"max({', '.join(heads)})",
        "heads_full": f"max({', '.join(f'{argument.full}.shape[{argument.head_axis}]' for argument in found)})",
        "typed": ", ".join(f"{argument.name}: Tensor" for argument in found),
        "typed_full": ", ".join(f"{argument.full}: Tensor" for argument in found),
        "typed_tokens": ", ".join(f"{argument.token}: Tensor" for argument in found),
        "typed_parameters": ", ".join(f"{parameter.full}: Tensor" for parameter in parameters),
        "short": ", ".join(argument.name for argument in found),
        "count": len(found),
        "decay_m": "decay_MCV[m], rate, tiling.heads" if kind.decay_rate else "decay_MCKV[m]",
        "schema": ", ".join(f"Tensor {argument.name}" for argument in found),
    }


def _parameters(kind: RecurrenceKind, found: list[Argument]) -> list[Argument]:
    """What the public function takes: a decay as the spec gives it, factors on an axis of their own."""
    parameters = []
    for argument in found:
        axes = argument.axes
        if argument.name == "decay":
            if kind.decay == "none":
                continue
            axes = "H" if kind.decay == "constant" else axes
        elif argument.name != "q" and kind.factors:
            axes = axes.replace("BTH", "BTFH")
        parameters.append(Argument(argument.name, axes, argument.public))
    if kind.log_input:
        parameters.append(Argument("log_input", "BTH", "log_input"))
    return parameters


def _factors_as_tokens(
    kind: RecurrenceKind, found: list[Argument], shown: Mapping[str, Argument]
) -> list[str]:
    """The lines that make each of n factors a token: one of them decays, one is read."""
    edge = "0, n - 1" if kind.read == "exclusive" else "n - 1, 0"
    lines = [f"q_BTHK = F.pad(q_BTHK[:, :, None], (0, 0, 0, 0, {edge})).flatten(1, 2)"]
    for argument in found[1:]:
        if argument.name == "decay":
            zeros = "0, 0, " * (len(argument.axes) - 2)
            lines.append(
                f"{argument.full} = F.pad({argument.full}[:, :, None], ({zeros}0, n - 1)).flatten(1, 2)"
            )
        elif argument.name == "v" and kind.normalize != "none":
            lines.append("wide_BTHV = wide_BTFHV.flatten(1, 2)")
        else:
            lines.append(f"{argument.full} = {shown[argument.name].full}.flatten(1, 2)")
    return lines


def _queries_as_tokens(kind: RecurrenceKind, found: list[Argument]) -> list[str]:
    """The lines that make each query of a group a token: one of them writes."""
    lines = ["q_BTHK = torch.unflatten(q_BTHK, 2, (-1, group)).transpose(2, 3).flatten(1, 2)"]
    edge = "group - 1, 0" if kind.read == "exclusive" else "0, group - 1"
    for argument in found[1:]:
        if argument.per_token:
            zeros = "0, 0, " * (len(argument.axes) - 2)
            text = f"F.pad({argument.full}[:, :, None], ({zeros}{edge})).flatten(1, 2)"
            lines.append(f"{argument.full} = {text}")
    return lines


def beside_facts(kind: RecurrenceKind, facts: Mapping[str, Any]) -> dict[str, object]:
    """What the form over chunks shows of a normaliser beside the state."""
    found = kernel_arguments(kind)
    weights = [argument for argument in found if argument.name in ("weight", "floor")]
    group = list(facts["group"])
    edge = "group - 1, 0" if kind.read == "exclusive" else "0, group - 1"
    for argument in weights if kind.grouped else ():
        padded = f"F.pad({argument.full}[:, :, None], (0, 0, {edge})).flatten(1, 2)"
        repeated = f"{argument.full}.repeat_interleave(group, 1)"
        group.append(f"{argument.full} = {padded if argument.name == 'weight' else repeated}")
    inputs = [argument.name for argument in found if argument not in weights]
    return {
        "names": ", ".join(argument.full for argument in found),
        "typed": ", ".join(f"{argument.name}: Tensor" for argument in found),
        "typed_full": ", ".join(f"{argument.full}: Tensor" for argument in found),
        "short": ", ".join(argument.name for argument in found),
        "schema": ", ".join(f"Tensor {argument.name}" for argument in found),
        "heads": f"max({', '.join(f'{argument.name}.shape[2]' for argument in found)})",
        "widened": "v, weight" if weights else "v",
        "wide": ", ".join("wide" if name == "v" else name for name in inputs),
        "gradients": ", ".join(f"d{name}" for name in inputs),
        "differentiated": ", ".join([*inputs, *(["weight"] if weights else [])]),
        "group": group,
    }


TITLES = {
    (decay, erase): text
    for decay, what in (
        ("none", "without decay"),
        ("constant", "with a constant decay per head"),
        ("head", "with a decay per head"),
        ("key", "with a decay per key channel"),
        ("value", "with a decay per value channel"),
        ("elementwise", "with a decay per element of the state"),
    )
    for erase, text in (
        ("none", f"Linear recurrence {what}."),
        ("delta", f"Delta rule {what}."),
        ("pair", f"Recurrence {what} and a general rank-one erase."),
    )
}


def definition(kind: RecurrenceKind) -> str:
    """The recurrence in one line of mathematics."""
    decayed = {
        "none": "S",
        "value": "S Diag(exp(decay))",
        "key": "Diag(exp(decay)) S",
        "elementwise": "exp(decay) * S",
    }.get(kind.core().decay, "exp(decay) S")
    erase = {
        "none": "k v^T",
        "delta": "beta k (v - S'^T k)^T",
        "pair": f"erase_write (erase_read^T {'S' if kind.erase_from == 'previous' else chr(83) + chr(39)}) + k v^T",
    }[kind.erase]
    read = "o = scale S_next^T q" if kind.read == "inclusive" else "o = scale S^T q"
    return f"S' = {decayed};  S_next = S' + {erase};  {read}."


def legend(kind: RecurrenceKind) -> str:
    """What the decay tiles are called."""
    if kind.core().decay == "none":
        none = "here there is none."
        return none + ("\nw is erase_write, r is erase_read." if kind.erase == "pair" else "")
    text = "`in` is e^G, `out` is e^(G_end - G), `all` is e^G_end."
    if kind.read == "exclusive" or kind.erase_from == "previous":
        text += "\n`before` is e^(G - decay)."
    return text + ("\nw is erase_write, r is erase_read." if kind.erase == "pair" else "")


def steps(kind: RecurrenceKind) -> list[str]:
    """The numbered mathematics of one chunk, from the tile program."""
    if form_of(kind).form != "chunk":
        return []
    lines: dict[int, str] = {}
    for step in forward(kind).steps:
        text = _mathematics(step)
        lines[step.number] = (
            f"{lines[step.number]} + {text}" if step.adds else f"{step.number:2d}. {step.result} = {text}"
        )
    return [textwrap.fill(line, 108, subsequent_indent="    ") for line in lines.values()]


def _mathematics(step: Step) -> str:
    """One tile operation as a formula; `i` and `j` are tokens of the chunk."""
    rows = step.operands

    def factor(row: Row) -> str:
        return {"": "", "+": " e^G", "<": " e^(G - decay)", "-": " e^(G_end - G)"}[row.exponent]

    def scaled(row: Row) -> str:
        return f"{row.scalar} {row.base}" if row.scalar else row.base

    def tile(row: Row) -> str:
        text = f"{scaled(row)}{factor(row)}"
        return f"({text})" if " " in text else text

    match step.operation:
        case "cumulative":
            return "running sum of decay"
        case "pair":
            x, y = rows
            below = "j < i" if step.mask == "strict" else "j <= i"
            left = f"{x.base}_i . {f'{y.scalar}_j ' if y.scalar else ''}{y.base}_j"
            since = {"": "", "+": " e^(G_i - G_j)", "<": " e^(G_i - decay_i - G_j)"}[x.exponent]
            return f"[{left}{since} for {below}]"
        case "invert":
            return f"(I {'-' if step.minus else '+'} {rows[0].base})^-1"
        case "apply":
            if step.into:
                gate = "G_i" if step.into == "+" else "G_i - decay_i"
                return f"[sum over j of {rows[0].base}_ij {rows[1].base}_j e^({gate} - G_j)]"
            return f"{rows[0].base} {rows[1].base}"
        case "solve":
            return f"{rows[0].base} {rows[1].base}"
        case "read":
            into = {"": "", "+": " e^G", "<": " e^(G - decay)"}[step.into]
            return f"{tile(rows[0])} S{into}"
        case "update":
            carried = "e^G_end S" if any(row.exponent for row in rows[1::2]) else "S"
            carried = "S e^G_end" if any(row.exponent for row in rows[2::2]) else carried
            pairs = zip(rows[1::2], rows[2::2], strict=True)
            return " + ".join([carried, *(f"{tile(x)}^T {tile(y)}" for x, y in pairs)])
        case _:
            return f"{rows[0].base} {'-' if step.sign < 0 else '+'} {rows[1].base}"
