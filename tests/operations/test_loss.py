"""The chunked loss against cross entropy over all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

VOCAB, WIDTH = 11, 6


def definition(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, softcap: float | None, z_loss: float
) -> Tensor:
    logits = scale * hidden @ weight.t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    kept = targets != -100
    squares = logits.logsumexp(-1)[kept].square().mean()
    return F.cross_entropy(logits, targets) + z_loss * squares


@pytest.mark.parametrize("chunk", [1, 4, 1024])
@pytest.mark.parametrize(("scale", "softcap", "z_loss"), [(1, None, 0.0), (0.5, 2.0, 0.1), (2, None, 0.3)])
def test_dense(package: Any, chunk: int, scale: float, softcap: float | None, z_loss: float) -> None:
    hidden = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(VOCAB, (2, 7))
    labels[0, 3] = -100
    extra = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    targets = package.loss.next_tokens(labels)
    loss = package.loss.chunked_loss(
        hidden, weight, targets, chunk=chunk, logit_scale=scale, softcap=softcap, z_loss=z_loss, aux=extra
    )
    assert torch.equal(targets, torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1))
    main = definition(hidden.flatten(0, 1), weight, targets.flatten(), scale, softcap, 0.0)
    want = definition(hidden.flatten(0, 1), weight, targets.flatten(), scale, softcap, z_loss) + extra
    torch.testing.assert_close(loss.main, main)
    torch.testing.assert_close(loss.total, want)
    torch.testing.assert_close(loss.aux, want - main)
    leaves = (hidden, weight, extra)
    for a, b in zip(torch.autograd.grad(loss.total, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_packed_and_padded(package: Any) -> None:
    """No target crosses a border, and the row's tail has none."""
    lengths, tail = [3, 0, 1, 5], 2
    labels = torch.randint(VOCAB, (1, sum(lengths) + tail))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    got = package.loss.next_tokens(labels, cu_seqlens)[0]
    want = []
    for part in labels[0, : sum(lengths)].split(lengths):
        want += [*part[1:].tolist(), -100] if len(part) else []
    assert got.tolist() == [*want, -100, -100]
    hidden = torch.randn(4, 6, WIDTH, dtype=torch.float64)
    weight = torch.randn(VOCAB, WIDTH, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0] * 6, [1] * 6])
    tokens = torch.randint(VOCAB, (4, 6))
    padding = package.place.pack_padding(mask)
    moved = package.loss.next_tokens(padding.pack(tokens), padding.cu_seqlens)
    loss = package.loss.chunked_loss(padding.pack(hidden), weight, moved)
    rows = [row.nonzero().flatten() for row in mask]
    inputs = torch.cat([hidden[n, row[:-1]] for n, row in enumerate(rows)])
    targets = torch.cat([tokens[n, row[1:]] for n, row in enumerate(rows)])
    torch.testing.assert_close(loss.main, F.cross_entropy(inputs @ weight.t(), targets))


def test_no_targets_at_all(package: Any) -> None:
    hidden = torch.randn(1, 1, WIDTH, requires_grad=True)
    loss = package.loss.chunked_loss(hidden, torch.randn(VOCAB, WIDTH), torch.full((1, 1), -100))
    loss.total.backward()
    assert loss.total.item() == 0 and hidden.grad is not None and not hidden.grad.any()


def test_registration(package: Any) -> None:
    hidden = torch.randn(WIDTH, 7, dtype=torch.float64).t().requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCAB, (7,))
    targets[2] = -100
    torch.library.opcheck(package.loss._forward, (hidden, weight, targets, 3, 0.5, 2.0))


def test_low_precision_and_autocast(package: Any) -> None:
    """The logits of a chunk are rounded to bf16 once: at most 2 ** -9 of the largest each."""
    hidden, weight = torch.randn(2, 40, WIDTH).bfloat16(), torch.randn(VOCAB, WIDTH).bfloat16()
    labels = torch.randint(VOCAB, (2, 40))
    want = package.loss.chunked_loss(hidden.double(), weight.double(), labels, chunk=7).main
    largest = (hidden.double() @ weight.double().t()).abs().max().item()
    for weights in (weight, weight.float()):
        with torch.autocast("cpu", torch.bfloat16):
            got = package.loss.chunked_loss(hidden, weights, labels, chunk=7).main
        assert got.dtype == torch.float32
        assert abs(got.item() - want.item()) <= 2 * 2**-9 * largest


def test_memory_stays_below_all_logits(package: Any) -> None:
    """The largest tensor that any operation of the loss and its gradient makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple | list) else [result]:
                if isinstance(one, Tensor):
                    largest = max(largest, one.numel())
            return result

    hidden = torch.randn(1, 200, WIDTH, requires_grad=True)
    weight = torch.randn(100, WIDTH, requires_grad=True)
    package.loss.token_losses(hidden[0], weight, torch.zeros(200, dtype=torch.int64), 10)
    with Watch():
        losses, _ = package.loss._forward._init_fn(
            hidden[0].detach(), weight.detach(), torch.zeros(200, dtype=torch.int64), 10, 1.0, 0.0
        )
    assert 10 * 100 <= largest < 200 * 100 / 4
