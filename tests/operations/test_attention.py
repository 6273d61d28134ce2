"""Attention against a double loop over queries and keys, in every form and every cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.operations.laws import alone, cut, in_pieces, packed

HEADS, GROUPS, K, V, SLOTS = 4, 2, 5, 3, 24
LENGTHS = [5, 0, 1, 9, 2, 0]
EVEN = [5, 4, 0, 5]  # these are padded to one length, the others attend as one row


def slopes() -> Tensor:
    return torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64).view(1, HEADS, 1, 1)


def cap(s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return 2 * torch.tanh(s / 2) - slopes() * (i - j)


def every_other(i: Tensor, j: Tensor) -> Tensor:
    """Removes the own token of some queries: the first query of a sequence may be left with nothing."""
    return (i - j) % 3 != 0


def forget(s: Tensor, i: Tensor, j: Tensor, a_i: Tensor, a_j: Tensor, b_i: Tensor, b_j: Tensor) -> Tensor:
    """Scores from values of the two tokens, one with heads and one without."""
    return s + a_i * a_j + (b_i - 2 * b_j)


def close_by(i: Tensor, j: Tensor, a_i: Tensor, a_j: Tensor, b_i: Tensor, b_j: Tensor) -> Tensor:
    return (b_j > b_i - 1) | (i == j)


CASES: dict[str, dict[str, Any]] = {
    "tokens": {"score": forget, "tokens": {"a": (HEADS,), "b": ()}},
    "tokens_window": {"mask": close_by, "window": 3, "tokens": {"a": (HEADS,), "b": ()}},
    "plain": {},
    "window": {"window": 3},
    "mask": {"mask": every_other},
    "score": {"score": cap},
    "sink": {"sink": torch.linspace(-1, 2, HEADS, dtype=torch.float64)},
    "everything": {"window": 3, "mask": every_other, "score": cap, "sink": torch.zeros(HEADS).double()},
}


def definition(inputs: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """One sequence; `[T, H, ...]` each."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    length = len(q)
    found: dict[str, list[Tensor]] = {"out": [], "lse": [], "max": [], "probs": []}
    for t in range(length):
        for h in range(HEADS):
            g = h * GROUPS // HEADS
            scores, seen = [], []
            for s in range(length):
                if s > t and options.get("causal", True):
                    continue
                if "window" in options and t - s >= options["window"]:
                    continue
                i, j = torch.tensor([[[[t]]]]), torch.tensor([[[[s]]]])
                values = [
                    inputs[name][n].reshape(1, -1, 1, 1) for name in options.get("tokens", ()) for n in (t, s)
                ]
                if "mask" in options and not bool(options["mask"](i, j, *values).all()):
                    continue
                value = 0.4 * (q[t, h] * k[s, g]).sum()
                if "score" in options:
                    value = options["score"](value.view(1, 1, 1, 1).expand(1, HEADS, 1, 1), i, j, *values)[
                        0, h, 0, 0
                    ]
                scores.append(value)
                seen.append(s)
            probs = torch.zeros(length, dtype=q.dtype)
            lse = top = torch.tensor(float("-inf"), dtype=q.dtype)
            if scores:
                stacked = torch.stack(scores)
                lse, top = stacked.logsumexp(0), stacked.max()
                total = lse if "sink" not in options else torch.logaddexp(lse, options["sink"][h])
                probs = probs.index_copy(0, torch.tensor(seen), (stacked - total).exp())
            found["probs"].append(probs)
            found["lse"].append(lse)
            found["max"].append(top)
            found["out"].append(probs @ v[:, g])
    shapes = {"out": (V,), "lse": (), "max": (), "probs": (length,)}
    return {
        name: torch.stack(rows).view(length, HEADS, *shapes[name])
        if rows
        else torch.zeros(0, HEADS, *shapes[name], dtype=q.dtype)
        for name, rows in found.items()
    }


def operation(package: Any, options: dict[str, Any]) -> Callable[[dict[str, Tensor], Any], Tensor]:
    def attend(inputs: dict[str, Tensor], place: Any) -> Tensor:
        given = dict(options)
        if "tokens" in given:
            given["tokens"] = {name: inputs[name] for name in given["tokens"]}
        found: Tensor = package.attention.attention(
            inputs["q"], inputs["k"], inputs["v"], scale=0.4, place=place.at("a"), **given
        )
        return found

    return attend


def sequence(length: int, *batch: int) -> dict[str, Tensor]:
    shapes = {"q": (HEADS, K), "k": (GROUPS, K), "v": (GROUPS, V), "a": (HEADS,), "b": ()}
    return {name: torch.randn(*batch, length, *shape, dtype=torch.float64) for name, shape in shapes.items()}


def empty_state(package: Any, rows: int, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    slots = options.get("window", SLOTS)
    memory = {
        "a.k": torch.zeros(rows, slots, GROUPS, K, dtype=dtype),
        "a.v": torch.zeros(rows, slots, GROUPS, V, dtype=dtype),
        "a.a": torch.zeros(rows, slots, HEADS, dtype=dtype),
        "a.b": torch.zeros(rows, slots, dtype=dtype),
    }
    limited_by = None if "window" in options else "a.k"
    return package.state.State.empty(memory, rows, SLOTS, limited_by=limited_by)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", [LENGTHS, EVEN], ids=["uneven", "even"])
def test_dense_and_packed_equal_the_definition(package: Any, case: str, lengths: list[int]) -> None:
    options = CASES[case]
    given = [sequence(length) for length in lengths]
    attend = operation(package, options)
    want = [definition(one, options)["out"] for one in given]
    for got in (alone(package, attend, given), packed(package, attend, given, tail=2)[0]):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", CASES)
def test_tokens_of_no_sequence(package: Any, case: str) -> None:
    """A row whose sequences are all empty: its tokens give anything finite."""
    options, inputs = CASES[case], sequence(3, 1)
    layout = package.place.packed_layout(torch.tensor([0, 0, 0]), 3)
    got = operation(package, options)(inputs, package.state.open_place(layout))
    assert got.shape == (1, 3, HEADS, V) and got.isfinite().all()


@pytest.mark.parametrize("case", ["plain", "mask"])
def test_both_directions(package: Any, case: str) -> None:
    options = {**CASES[case], "causal": False}
    for lengths in (LENGTHS, EVEN):
        given = [sequence(length) for length in lengths]
        attend = operation(package, options)
        want = [definition(one, options)["out"] for one in given]
        for got in (alone(package, attend, given), packed(package, attend, given, tail=2)[0]):
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one, other)
    with torch.no_grad(), pytest.raises(ValueError, match=r"a\.k: .*no state"):
        in_pieces(package, attend, sequence(4, 2), empty_state(package, 2, {}), (4,))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pieces", [(4, 3), (1,) * 7, (1, 5, 1), (7,)])
@pytest.mark.parametrize("return_state", [False, True])
def test_pieces_equal_the_whole(package: Any, case: str, pieces: tuple[int, ...], return_state: bool) -> None:
    options = CASES[case]
    inputs = sequence(7, 2)
    state = empty_state(package, 2, options)
    with torch.set_grad_enabled(return_state):
        got, after = in_pieces(package, operation(package, options), inputs, state, pieces, return_state)
    rows = [{name: value[row] for name, value in inputs.items()} for row in range(2)]
    torch.testing.assert_close(got, torch.stack([definition(row, options)["out"] for row in rows]))
    assert not return_state or not any(tensor.any() for tensor in state.memory.values())
    if "window" not in options:
        torch.testing.assert_close(after.memory["a.k"][:, :7], inputs["k"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("return_state", [False, True])
def test_ragged_batches(package: Any, case: str, return_state: bool) -> None:
    """Packed prefill, packed continuation, then single tokens for sequences of different lengths."""
    options = CASES[case]
    attend = operation(package, options)
    given = [sequence(length + 3) for length in LENGTHS]
    first = [2, 0, 0, 4, 1, 0]
    state = empty_state(package, len(given), options)
    borders = [first, LENGTHS]
    parts: list[list[Tensor]] = [[] for _ in given]
    with torch.set_grad_enabled(return_state):
        for before, after in zip([[0] * 6, first], borders, strict=True):
            cuts = [cut(one, a, b) for one, a, b in zip(given, before, after, strict=True)]
            got, state = packed(package, attend, cuts, state, tail=2, return_state=return_state)
            for row, part in zip(parts, got, strict=True):
                row.append(part)
        for step in range(3):
            token = {
                name: torch.stack(
                    [one[name][n + step : n + step + 1] for one, n in zip(given, LENGTHS, strict=True)]
                )
                for name in ("q", "k", "v", "a", "b")
            }
            got, state = in_pieces(package, attend, token, state, (1,), return_state)
            for row, part in zip(parts, got, strict=True):
                row.append(part)
    for row, one in zip(parts, given, strict=True):
        torch.testing.assert_close(torch.cat(row), definition(one, options)["out"])
    assert state.length.tolist() == [length + 3 for length in LENGTHS]


@pytest.mark.parametrize(("window", "slots"), [(3, SLOTS), (3, 7), (9, 7), (7, 7)])
@pytest.mark.parametrize("pieces", [(4, 3), (1,) * 7])
def test_a_window_on_entries_of_any_size(
    package: Any, window: int, slots: int, pieces: tuple[int, ...]
) -> None:
    """More slots than the window: an ordinary cache with a mask. Fewer: a state shorter than the window."""
    options = {"window": window}
    state = empty_state(package, 2, {"window": slots})
    inputs = sequence(7, 2)
    with torch.no_grad():
        got, _ = in_pieces(package, operation(package, options), inputs, state, pieces)
    rows = [{name: value[row] for name, value in inputs.items()} for row in range(2)]
    torch.testing.assert_close(got, torch.stack([definition(row, options)["out"] for row in rows]))


def test_a_full_cache_is_refused_before_it_is_written(package: Any) -> None:
    state = empty_state(package, 2, {})
    attend = operation(package, {})
    with torch.no_grad():
        in_pieces(package, attend, sequence(20, 2), state, (20,))
        before = state.clone()
        with pytest.raises(package.place.StateError, match=r"a\.k holds 24 tokens.* to 25"):
            in_pieces(package, attend, sequence(5, 2), state, (5,))
        with pytest.raises(package.place.StateError, match="holds 2 sequences, the call has 3"):
            in_pieces(package, attend, sequence(1, 3), state, (1,))
        # The bound of a packed call is loose; what counts is the true length.
        packed(package, attend, [sequence(4), sequence(0)], state)
        with pytest.raises(package.place.StateError, match=r"a\.k holds 24"):
            packed(package, attend, [sequence(1), sequence(0)], state)
        packed(package, attend, [sequence(0), sequence(4)], state)
    torch.testing.assert_close(state.memory["a.k"][:, :20], before.memory["a.k"][:, :20])
    with pytest.raises(package.place.StateError, match="return_state=True"):
        package.state.open_place(package.place.dense_layout(sequence(0, 2)["q"], state), state)


@pytest.mark.parametrize("case", CASES)
def test_outputs(package: Any, case: str) -> None:
    options = CASES[case]
    names = ("out", "lse", "max", "probs")
    given = [sequence(length) for length in LENGTHS]
    for index, name in enumerate(names):

        def one_output(inputs: dict[str, Tensor], place: Any, index: int = index) -> Tensor:
            return operation(package, {**options, "outputs": names})(inputs, place)[index]

        want = [definition(one, options)[name] for one in given]
        for got in (alone(package, one_output, given), packed(package, one_output, given)[0]):
            for one, other in zip(got, want, strict=True):
                kept = one if name != "probs" else one[..., : other.shape[-1]]
                assert name != "probs" or not one[..., other.shape[-1] :].any()
                torch.testing.assert_close(kept, other)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", [LENGTHS, EVEN], ids=["uneven", "even"])
def test_gradients(package: Any, case: str, lengths: list[int]) -> None:
    options = CASES[case]
    rows = {name: value.requires_grad_() for name, value in sequence(sum(lengths)).items()}
    parts = {name: value.split(lengths) for name, value in rows.items()}
    given = [{name: parts[name][n] for name in rows} for n in range(len(lengths))]
    weights = torch.randn(sum(lengths), HEADS, V, dtype=torch.float64)
    got = torch.cat(packed(package, operation(package, options), given, tail=2)[0])
    want = torch.cat([definition(one, options)["out"] for one in given])
    leaves = list(rows.values())
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), leaves, materialize_grads=True),
        torch.autograd.grad((want * weights).sum(), leaves, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_shared_entries(package: Any) -> None:
    """Two calls that read one value store it once, rings too."""

    def pair(inputs: dict[str, Tensor], place: Any) -> Tensor:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        attend = package.attention.attention
        one = attend(q, k, v, scale=0.4, place=place, keys="k", values="v", window=3)
        two = attend(q, -k, v, scale=0.4, place=place, keys="k2", values="v", window=3)
        difference: Tensor = one - two
        return difference

    inputs = sequence(7, 2)
    memory = {name: torch.zeros(2, 3, GROUPS, K if "k" in name else V).double() for name in ("k", "k2", "v")}
    layout = package.place.dense_layout(inputs["q"])
    whole = pair(inputs, package.state.open_place(layout))
    with torch.no_grad():
        for pieces in ((4, 3), (1,) * 7, (2, 3, 2)):
            state = package.state.State.empty({n: t.clone() for n, t in memory.items()}, 2, SLOTS)
            torch.testing.assert_close(in_pieces(package, pair, inputs, state, pieces)[0], whole)


@pytest.mark.parametrize("case", ["plain", "window", "score"])
def test_low_precision(package: Any, case: str) -> None:
    """bf16 in and out; the error stays within what rounding the inputs' products and the output explains."""
    options = CASES[case]
    inputs = {name: value.bfloat16() for name, value in sequence(9, 2).items()}
    state = empty_state(package, 2, options, torch.bfloat16)
    with torch.no_grad():
        got, _ = in_pieces(package, operation(package, options), inputs, state, (5, 1, 3))
    rows = [{name: value[row].double() for name, value in inputs.items()} for row in range(2)]
    want = torch.stack([definition(row, options)["out"] for row in rows])
    assert got.dtype == torch.bfloat16
    # Weights sum to 1 and each is rounded to 8 bits at most once, the output once more.
    bound = 2 * 2**-8 * inputs["v"].abs().max().item()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)
