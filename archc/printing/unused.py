"""Leaves out of printed functions what they compute and never read."""

from __future__ import annotations

import ast
from functools import lru_cache


@lru_cache(maxsize=64)  # a build asks for each module twice: to compile it, and to write it
def without_unused(source: str) -> str:
    """The source of a module without assignments to one name that nothing in its function reads.

    Printers write what a rule may need; which of it a class does need is seen when all is written. Only assignments of
    one plain name go, again until none is left.
    """
    while lines := _unused(ast.parse(source)):
        source = "".join(
            line for number, line in enumerate(source.splitlines(keepends=True), 1) if number not in lines
        )
    return source


def _unused(module: ast.Module) -> set[int]:
    """The numbers of the lines of such assignments."""
    found: set[int] = set()
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        nodes = list(ast.walk(function))
        read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        changed = {
            node.target.id
            for node in nodes
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
        }
        for node in nodes:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if all(isinstance(target, ast.Name) and target.id not in read | changed for target in targets):
                found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found
