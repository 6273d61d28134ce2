"""Tests that run kernels in the interpreter, in a process of their own: `TRITON_INTERPRET=1 pytest tests/interpreted`.

A process that interprets cannot compile, so the folder is left out unless it is named. Arithmetic in bf16 is silently
wrong there: only float32 and float16.
"""

from __future__ import annotations

import os
import sys

import pytest

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit(
        "tests/interpreted needs a process of its own: TRITON_INTERPRET=1 pytest tests/interpreted", 2
    )
os.environ["TRITON_INTERPRET"] = "1"
