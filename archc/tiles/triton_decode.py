"""Print the decode step of a recurrence as one Triton kernel: the definition for one token, the state in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from archc.templates import environment
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.views import Argument, arguments, public_facts

TILE = 4096  # elements of the state that a program holds: 32 registers a thread
WARPS = 4


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor argument as the kernel loads it: `tile` is its name there, `expression` its value in float32."""

    argument: Argument
    tile: str
    expression: str

    @property
    def name(self) -> str:
        return self.argument.name

    @property
    def grouped(self) -> bool:
        return self.tile == "q_QK"


def decode_source(kind: RecurrenceKind) -> str:
    """The text of `decode_kernel` and its launcher `decode_step`, for a module that has imported triton and torch.

    `decode_step` has the arguments and the results of that of the torch form, for states in float32. Raises
    ValueError, with the reason, for a class that has no form.
    """
    verdict = form_of(kind)
    if verdict.form == "error":
        raise ValueError(verdict.reason)
    template = environment().get_template("recurrence/kernels_decode.py.jinja")
    found, loaded = arguments(kind), operands(kind)
    moving = [operand for operand in loaded if operand.argument.per_token]
    fixed = [operand for operand in loaded if not operand.grouped]
    heads = [f"{operand.argument.token}.shape[{int(operand.argument.per_token)}]" for operand in fixed]
    constants = [*(f"{operand.name}_heads" for operand in fixed), "H", "K", "V", "BLOCK_K", "BLOCK_V"]
    given = [*heads, "H", "K", "V", "block_K", "block_V"]
    if kind.grouped:
        constants.insert(-4, "Q")
        given.insert(-4, "q_BHK.shape[1] // H")
    return template.render(
        kind=kind,
        operands=loaded,
        lines=decode_lines(kind),
        facts=public_facts(kind, found),
        tile=TILE,
        arguments=[*(operand.name for operand in loaded), "S", "o", "scale"],
        strides=[f"{operand.name}_{axis}" for operand in moving for axis in "BH"],
        constants=constants,
        given=[*(operand.argument.token for operand in loaded), "S_BHKV", "o_BHV", "scale"],
        given_strides=[f"{operand.argument.token}.stride({axis})" for operand in moving for axis in (0, 1)],
        given_constants=[*given, f"num_warps={WARPS}"],
    )


def operands(kind: RecurrenceKind) -> list[Operand]:
    """What the kernel loads before the first line. The queries of a group are loaded where they read."""
    found = []
    for argument in arguments(kind):
        axes = argument.axes.replace("B", "").replace("T", "").replace("H", "")
        name = argument.name
        if name == "q" and kind.grouped:
            found.append(Operand(argument, "q_QK", ""))
            continue
        at = f"{name} + b * {name}_B + h * {name}_heads // H * {name}_H"
        if name == "rate":
            at = f"{name} + h * {name}_heads // H * (K * V)"
        load = {
            "": f"tl.load({at})",
            "K": f"tl.load({at} + K_, in_K, 0.0)",
            "V": f"tl.load({at} + V_, in_V, 0.0)",
            "KV": f"tl.load({at} + KV_, in_KV, 0.0)",
        }[axes]
        found.append(Operand(argument, f"{name}_{axes}" if axes else f"{name}_", f"{load}.to(tl.float32)"))
    return found


def decode_lines(kind: RecurrenceKind) -> list[str]:
    """From `S_KV` and one token's rows to the next `S_KV` and `o_V`, as in `token_lines.token_lines`."""
    names = {operand.name: operand.tile for operand in operands(kind)}
    read = [f"o_V = {read_line('q_K')}"]
    if kind.grouped:
        read = [
            "for i in range(Q):  # the queries of a group read one state",
            "    q_K = tl.load(q + b * q_B + (h * Q + i) * q_H + K_, in_K, 0.0).to(tl.float32)",
            f"    o_V = {read_line('q_K')} * scale",
            "    tl.store(o + ((b * H + h) * Q + i) * V + V_, o_V, in_V)",
        ]
    update = state_lines(kind, names)
    return read + update if kind.read == "exclusive" else update + read


def read_line(row: str) -> str:
    """What the state holds under a row."""
    return f"tl.sum(S_KV * {row}[:, None], 0)"


def state_lines(kind: RecurrenceKind, names: Mapping[str, str]) -> list[str]:
    """From `S_KV` to the next `S_KV`: decay, erase, write. `names`: the tiles of its operands."""
    core = kind.core()
    lines: list[str] = []

    def read(result: str, row: str) -> None:
        lines.append(f"{result}_V = {read_line(names[row])}")

    def write(row: str, column: str) -> None:
        lines.append(f"S_KV += {names[row]}[:, None] * {column}[None, :]")

    if core.erase == "pair" and core.erase_from == "previous":
        read("u", "r")
    if core.decay != "none":
        decay = names["decay"]
        factor = {
            "head": f"tl.exp({decay})",
            "key": f"tl.exp({decay})[:, None]",
            "value": f"tl.exp({decay})[None, :]",
            "elementwise": f"tl.exp({decay}[None, :] * {names['rate']})"
            if core.decay_rate
            else f"tl.exp({decay})",
        }
        lines.append(f"S_KV *= {factor[core.decay]}")
    if core.erase == "delta":
        read("seen", "k")
        lines.append(f"u_V = {names['beta']} * ({names['v']} - seen_V)")
        write("k", "u_V")
    else:
        if core.erase == "pair" and core.erase_from == "decayed":
            read("u", "r")
        if core.erase == "pair":
            write("w", "u_V")
        write("k", names["v"])
    return lines


def blocks(K: int, V: int) -> tuple[int, int]:
    """Rows and columns of the state that one program holds: all of K, and as much of V as fits."""
    rows = 1 << (K - 1).bit_length()
    return rows, min(1 << (V - 1).bit_length(), max(TILE // rows, 16))
