"""All mutants where this folder is asked for by itself (`make mutants`); a sample among all slow tests."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, in a run of more than this folder, the mutants that are not sampled."""
    asked = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    if all(path.is_relative_to(HERE) for path in asked):
        return
    left_out = {
        item
        for item in items
        if isinstance(item, pytest.Function)
        and item.originalname == "test_turns_red"
        and item.path.parent == HERE
        and not item.callspec.params["mutant"].sampled
    }
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=sorted(left_out, key=str))
