"""The walks over tokens of a state that decays entry by entry: how they are cut on a target, and what they move."""

from __future__ import annotations

from collections.abc import Sequence

from archc.kernels.bounds import Work
from archc.kernels.targets import Target
from archc.tiles.costs import count
from archc.tiles.kind import RecurrenceKind
from archc.tiles.triton_elementwise import GROUP, TokenLaunch, kept

WIDEST = 256  # key channels of a state whose narrowest block of columns fits the registers
NARROWEST = 8  # value columns of a block, whose decays are a sector of memory
# Entries of the state that a thread has. The backward holds sixteen states at once, or eight.
ENTRIES = {"walk": 16, "walk_back": 8}


def token_launches(
    kind: RecurrenceKind, sizes: Sequence[tuple[int, int]], target: Target
) -> dict[str, TokenLaunch]:
    """The tiles of "walk" and, where it fits, "walk_back"; of several sizes, those of the largest.

    A row of the target says the most columns; a program has fewer where its state would not fit the registers.
    """
    K, V = max(sizes)
    found = {}
    for role, entries in ENTRIES.items():
        tile = target.tile(role, decay=kind.decay, erase=kind.erase, K=K, V=V)
        if tile is None:
            continue
        most = entries * tile.num_warps * target.warp_size // max(_power(K), 16)
        if most >= NARROWEST:
            columns = min(tile.columns, most, max(_power(V), NARROWEST))
            found[role] = TokenLaunch(columns, tile.num_warps, tile.num_stages)
    if "walk" not in found:
        raise ValueError(f"{target.name} has no tile for an elementwise decay with K {K}")
    return found


def moved(
    kind: RecurrenceKind, K: int, V: int, columns: int, itemsize: int = 2, kept_tokens: int | None = None
) -> dict[str, float]:
    """Distinct bytes a token and head of each walk, and of the sums after the last one. columns: of the backward.

    A state is written and read for every so many tokens. Gradients of q and k are sums over value columns: one number
    in float32 for each block of them, which are then added up and, in a narrow type, rounded. kept_tokens: between two
    states that are kept, instead of what the class has.
    """
    least = count(kind, K, V, itemsize=itemsize)
    state = 4 * K * V / (kept_tokens or kept(kind))
    blocks = -(-V // columns)
    partial = 2 * K * (4 * blocks if blocks > 1 else itemsize)
    return {
        "walk": least.forward.bytes + state,
        "walk_back": least.backward.bytes - 2 * K * itemsize + partial + state,
        "sums": partial + 2 * K * (4 if itemsize == 4 else 8 + itemsize) if blocks > 1 else 0.0,
    }


def work_by_token(
    kind: RecurrenceKind, role: str, K: int, V: int, columns: int | None = None, itemsize: int = 2
) -> Work | None:
    """The work of one kernel of such a class per token and head; there are no matrix products in a row.

    The backward makes states again: all but the last group of what lies between two that are kept, and then all.
    """
    costs = count(kind, K, V, itemsize=itemsize)
    if role == "decode":
        return Work(costs.decode.bytes, costs.decode.flops, costs.decode.exponentials, 0.0)
    if role not in ENTRIES:
        return None
    bytes_ = moved(kind, K, V, columns or V, itemsize)[role]
    if role == "walk":
        return Work(bytes_, costs.forward.flops, costs.forward.exponentials, 0.0)
    again = 1 - GROUP / kept(kind) + (GROUP - 1) / GROUP
    exponentials = costs.backward.exponentials * (1 + again)
    return Work(bytes_, costs.backward.flops + 3.0 * K * V * again, exponentials, 0.0)


def _power(n: int) -> int:
    """The power of two from n on."""
    return 1 << (n - 1).bit_length()
