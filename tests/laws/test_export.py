"""torch.export: one program for all sizes, and a decode step whose state is its inputs and results."""

from __future__ import annotations

import importlib
import io

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, load, save

from tests.laws.measure import distance, sequences_of, subject, truth
from tests.laws.subjects import HYBRIDS, SHRUNK

pytestmark = pytest.mark.slow  # torch.export takes seconds for each

CONTEXT = 160
FIRST = ("attention_small", "windowed_hybrid")


@pytest.mark.parametrize(
    "name",
    [
        *FIRST,
        *(pytest.param(name, marks=pytest.mark.library) for name in (*HYBRIDS, *SHRUNK) if name not in FIRST),
    ],
)
def test_one_program_for_all_sizes(name: str) -> None:
    program = exported(subject(name)[1])
    expected = truth(name, 129)
    (tokens,) = sequences_of(129)
    with torch.no_grad():
        for length in (2, 65, 129):
            found = program.module()(tokens[None, :length].expand(3, length))
            assert distance([found[2]], [expected.logits[0][:length]]) <= expected.tolerance


def exported(model: nn.Module) -> ExportedProgram:
    """The model's forward, with any number of rows and tokens."""
    sizes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    with torch.no_grad():
        return export(model, (torch.zeros(2, 24, dtype=torch.int64),), dynamic_shapes=sizes)


def test_a_saved_program_finds_the_operations_of_its_package() -> None:
    _, model = subject("windowed_hybrid")
    held = io.BytesIO()
    save(exported(model), held)
    held.seek(0)
    expected = truth("windowed_hybrid", 40)
    (tokens,) = sequences_of(40)
    with torch.no_grad():
        assert distance([load(held).module()(tokens[None])[0]], expected.logits) <= expected.tolerance


class Step(nn.Module):
    """One call with a state, as a function of tensors alone."""

    def __init__(self, model: nn.Module, state: type) -> None:
        super().__init__()
        self.model, self.state = model, state

    def forward(
        self, tokens: Tensor, memory: dict[str, Tensor], length: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Logits, and what the state holds after the tokens."""
        longest = CONTEXT - tokens.shape[1]
        state = self.state(memory, length, CONTEXT, longest=longest, uniform=False)
        logits, after = self.model(tokens, state=state, return_state=True)
        return logits, after.memory, after.length


@pytest.mark.parametrize("name", FIRST)
def test_a_decode_step(name: str) -> None:
    package, model = subject(name)
    (tokens,) = sequences_of(30)
    expected = truth(name, 30)
    state = model.init_state(batch_size=1, max_length=CONTEXT)  # type: ignore[operator]
    kind = importlib.import_module(f"{package.__name__}.state").State
    with torch.no_grad():
        first = model(tokens[None, :20], state=state)
        memory, length = state.memory, state.length
        step = export(Step(model, kind), (tokens[None, 20:21], memory, length)).module()
        found = [first[0]]
        for at in range(20, 30):
            logits, memory, length = step(tokens[None, at : at + 1], memory, length)
            found.append(logits[0])
    assert length.tolist() == [30]
    assert distance([torch.cat(found)], expected.logits) <= expected.tolerance
