"""Print one token of a recurrence as lines of torch: the definition, and the decode step in place."""

from __future__ import annotations

from archc.tiles.kind import RecurrenceKind


def token_lines(kind: RecurrenceKind) -> list[str]:
    """The definition: from `S_BHKV` and one token's rows to the next `S_BHKV` and `o_BHV`, nothing in place."""
    core = kind.core()
    lines: list[str] = []

    def read(result: str, row: str) -> None:
        lines.append(f"{result}_BHV = (S_BHKV * {row}_BHK[:, :, :, None]).sum(2)")

    def write(row: str, column: str) -> None:
        lines.append(f"S_BHKV = S_BHKV + {row}_BHK[:, :, :, None] * {column}_BHV[:, :, None, :]")

    factor = {
        "head": "decay_BH.exp()[:, :, None, None]",
        "key": "decay_BHK.exp()[:, :, :, None]",
        "value": "decay_BHV.exp()[:, :, None, :]",
        "elementwise": "(decay_BHV[:, :, None, :] * rate_HKV).exp()"
        if core.decay_rate
        else "decay_BHKV.exp()",
    }
    if core.read == "exclusive":
        read("o", "q")
    if core.erase == "pair" and core.erase_from == "previous":
        read("u", "r")
    if core.decay != "none":
        lines.append(f"S_BHKV = S_BHKV * {factor[core.decay]}")
    if core.erase == "delta":
        read("seen", "k")
        lines.append("u_BHV = beta_BH[:, :, None] * (v_BHV - seen_BHV)")
        write("k", "u")
    else:
        if core.erase == "pair" and core.erase_from == "decayed":
            read("u", "r")
        if core.erase == "pair":
            write("w", "u")
        write("k", "v")
    if core.read == "inclusive":
        read("o", "q")
    return lines


def decode_lines(kind: RecurrenceKind) -> list[str]:
    """The same in place: from `S_AKV` and rows `[A, .]`, A over sequences and heads, to `o_A1V`."""
    core = kind.core()
    lines: list[str] = []

    def read(result: str, row: str) -> None:
        if row == "q" and kind.grouped:
            lines.append("o_AQV = torch.bmm(q_AQK, S_AKV)")
        else:
            lines.append(f"{result}_A1V = torch.bmm({row}_AK[:, None], S_AKV)")

    factor = {
        "head": "decay_A.exp()[:, None, None]",
        "key": "decay_AK.exp()[:, :, None]",
        "value": "decay_AV.exp()[:, None]",
        "elementwise": "(decay_AV[:, None] * rate_AKV).exp_()" if core.decay_rate else "decay_AKV.exp()",
    }
    if core.read == "exclusive":
        read("o", "q")
    if core.erase == "pair" and core.erase_from == "previous":
        read("u", "r")
    if core.decay != "none":
        lines.append(f"S_AKV.mul_({factor[core.decay]})")
    if core.erase == "delta":
        read("seen", "k")
        lines.append("u_A1V = (v_AV[:, None] - seen_A1V).mul_(beta_A[:, None, None])")
        lines.append("S_AKV.baddbmm_(k_AK[:, :, None], u_A1V)")
    else:
        if core.erase == "pair" and core.erase_from == "decayed":
            read("u", "r")
        if core.erase == "pair":
            lines.append("S_AKV.baddbmm_(w_AK[:, :, None], u_A1V)")
        lines.append("S_AKV.baddbmm_(k_AK[:, :, None], v_AV[:, None])")
    if core.read == "inclusive":
        read("o", "q")
    return lines
