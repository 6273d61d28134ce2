"""Scores of an erase of two rows under a decay per key channel, two in a square: how kernels write and read them.

Such scores are dear, and there are four, so that the backward is handed all and writes the gradients of all. Each is a
triangle: the inverse X has ones on its diagonal, rk nothing, qk and qw have one number a token where a token reads
what it wrote itself. So `r_scores` has X below the diagonal and rk above it, transposed; `q_scores` has qk below and
qw above. The diagonal of `q_scores` is that of qk; that of qw is where the ones of X would be.
"""

from __future__ import annotations

from archc.tiles.kind import RecurrenceKind

# Scores and their squares, and the scores that are above the diagonal; the same of gradients, where X has come from rw.
SQUARES = {"X": "r_scores", "rk": "r_scores", "qk": "q_scores", "qw": "q_scores"}
GRADIENTS = {"rw": "dr_scores", "rk": "dr_scores", "qk": "dq_scores", "qw": "dq_scores"}
ABOVE = ("rk", "qw")
LAST = {"q_scores": "qw", "r_scores": "X"}  # the score with which a square can be put together


def shares_squares(kind: RecurrenceKind) -> bool:
    """Whether the scores of a class share squares."""
    return kind.core().decay == "key" and kind.erase == "pair"


def square_of(kind: RecurrenceKind, name: str) -> str:
    """The tensor that has the scores of this name."""
    return SQUARES.get(name, name) if shares_squares(kind) else name


def score_lines(kind: RecurrenceKind, name: str) -> tuple[list[str], list[str]]:
    """The lines that load a score as `[J, C]`, the token that wrote and the one that reads; and what they load."""
    square = SQUARES[name]
    load = f"{square}_tiles.load([start, 0])"
    tile = load if name in ABOVE else f"tl.trans({load})"
    sees, rest = "j_J1 < c_1C", "0.0"
    lines, loaded = [], [f"{square}_JC"]
    if name == "X":
        rest = "(j_J1 == c_1C).to(dtype)"
    elif name == "qk":
        sees = "j_J1 <= c_1C"
    elif name == "qw" and kind.read == "inclusive":
        lines.append("own_JC = tl.where(j_J1 == c_1C, r_scores_tiles.load([start, 0]), 0.0)")
        loaded.append("r_scores_JC")
        rest = "own_JC"
    return [*lines, f"{name}_JC = tl.where({sees}, {tile}, {rest})"], loaded


def square_lines(kind: RecurrenceKind, square: str) -> list[str]:
    """The lines that put the scores of a square together, those that q reads first."""
    inclusive = kind.read == "inclusive"
    if square == "q_scores":
        own = ["own_1C = tl.sum(tl.where(j_J1 == c_1C, qw_JC, 0.0), 0)[None, :]"] if inclusive else []
        return [*own, "q_scores_JC = tl.where(j_J1 <= c_1C, qk_JC, tl.trans(qw_JC))"]
    above = "tl.where(j_J1 == c_1C, own_1C, tl.trans(rk_JC))" if inclusive else "tl.trans(rk_JC)"
    return [f"r_scores_JC = tl.where(j_J1 < c_1C, X_JC, {above})"]


def square_of_gradients(kind: RecurrenceKind, square: str) -> list[str]:
    """The lines that put the gradients of the scores of a square together, those that q reads first."""
    inclusive = kind.read == "inclusive"
    if square == "dq_scores":
        own = "own_1J = tl.sum(tl.where(j_1J == c_C1, dqw_JC, 0.0), 0)[None, :] * scale"
        made = f"tl.where(j_1J {'<=' if inclusive else '<'} c_C1, dqk_CJ, dqw_JC) * scale"
        return [*([own] if inclusive else []), f"dq_scores_CJ = {made}"]
    above = "tl.where(j_1J == c_C1, own_1J, drk_JC)" if inclusive else "drk_JC"
    return [f"dr_scores_CJ = tl.where(j_1J < c_C1, drw_CJ, {above})"]
