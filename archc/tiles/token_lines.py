"""Print one token of a recurrence as lines of torch: the definition, and the decode step in place."""

from __future__ import annotations

from archc.tiles.kind import RecurrenceKind

_DECAY = {
    "head": "decay_BH.exp()[:, :, None, None]",
    "key": "decay_BHK.exp()[:, :, :, None]",
    "value": "decay_BHV.exp()[:, :, None, :]",
    "elementwise": "decay_BHKV.exp()",
}


def token_lines(kind: RecurrenceKind, in_place: bool) -> list[str]:
    """The statements of one token of the class's core: from `S_BHKV` to `S_BHKV` and `o_BHV`.

    In place, products with the state are batched matrix products over `[B * H]`; otherwise every statement makes a
    new tensor, so that autograd can follow.
    """
    core = kind.core()
    lines: list[str] = []

    def read(result: str, row: str) -> None:
        if in_place:
            lines.append(f"{result}_BHV = torch.matmul({row}_BHK[:, :, None, :], S_BHKV)[:, :, 0]")
        else:
            lines.append(f"{result}_BHV = (S_BHKV * {row}_BHK[:, :, :, None]).sum(2)")

    def write(row: str, column: str) -> None:
        if in_place:
            lines.append(f"S_BHKV.addcmul_({row}[:, :, :, None], {column}[:, :, None, :])")
        else:
            lines.append(f"S_BHKV = S_BHKV + {row}[:, :, :, None] * {column}[:, :, None, :]")

    if core.read == "exclusive":
        read("o", "q")
    if core.erase == "pair" and core.erase_from == "previous":
        read("u", "r")
    if core.decay != "none":
        lines.append(f"S_BHKV.mul_({_DECAY[core.decay]})" if in_place else f"S_BHKV = S_BHKV * {_DECAY[core.decay]}")
    if core.erase == "delta":
        read("seen", "k")
        lines.append("u_BHV = beta_BH[:, :, None] * (v_BHV - seen_BHV)")
        write("k_BHK", "u_BHV")
    else:
        if core.erase == "pair" and core.erase_from == "decayed":
            read("u", "r")
        if core.erase == "pair":
            write("w_BHK", "u_BHV")
        write("k_BHK", "v_BHV")
    if core.read == "inclusive":
        read("o", "q")
    return lines
