"""What is committed under generated/ is what the compiler writes today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_committed_packages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "rebuild_generated.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"run `make build`:\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_what_is_committed_can_be_imported_and_runs() -> None:
    script = (
        "import torch\n"
        "from generated.slot_hybrid import Config, Model\n"
        "model = Model(Config(n_layers=2))\n"
        "tokens = torch.randint(0, 256, (2, 9))\n"
        "assert model(tokens).shape == (2, 9, 256)\n"
        "print(sum(p.numel() for p in model.parameters()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr
