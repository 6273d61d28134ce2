"""Modules of the compiler import each other in one direction, and so do its folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Imports = dict[str, set[str]]


@cache
def tree(source: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(source)


def modules_of(root: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name; what operations have copied into packages is never imported."""
    found = {}
    for path in root.rglob("*.py"):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        if parts[-1] not in ("runtime", "fused", "kernels"):
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(body: list[ast.stmt], *, functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a module, also those for type checkers; those inside functions where `functions` says so."""
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif functions or not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (getattr(statement, field, []) for field in ("body", "orelse", "finalbody", "handlers"))
            yield from statements([s for part in inner for s in part], functions=functions)


def imports(modules: dict[str, Path], *, functions: bool) -> Imports:
    """What each module imports of the others, with the packages that an import of a module within them runs first."""
    found: Imports = {name: set() for name in modules}
    for name, path in modules.items():
        for statement in statements(tree(path.read_text()).body, functions=functions):
            if isinstance(statement, ast.Import):
                named = [alias.name for alias in statement.names]
            else:
                assert statement.level == 0, f"{path}: a relative import"
                base = statement.module or ""
                named = [f"{base}.{alias.name}" for alias in statement.names]
                named = [full if full in modules else base for full in named]
            for target in filter(modules.__contains__, named):
                parts = target.split(".")
                outer = {".".join(parts[:count]) for count in range(2, len(parts))} & modules.keys()
                found[name] |= {target, *(o for o in outer if not f"{name}.".startswith(f"{o}."))} - {name}
    return found


def folders(found: Imports) -> Imports:
    """The same for the folders below the root, and the modules beside them; the root itself names what is public."""
    outer = {name: ".".join(name.split(".")[:2]) for name in found}
    joined: Imports = {folder: set() for folder in outer.values()}
    for name, targets in found.items():
        joined[outer[name]] |= {outer[target] for target in targets} - {outer[name]}
    root = min(joined, key=len)
    return {name: targets - {root} for name, targets in joined.items() if name != root}


def circle(found: Imports) -> str:
    """A circle of imports, or nothing."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def test_no_modules_import_each_other(repository: Path) -> None:
    modules = modules_of(repository / "archc")
    assert len(modules) > 150
    assert circle(imports(modules, functions=True)) == ""


def test_no_folders_import_each_other(repository: Path) -> None:
    found = folders(imports(modules_of(repository / "archc"), functions=False))
    assert {"archc.spec", "archc.graph", "archc.operations", "archc.elaboration"} <= found.keys()
    assert circle(found) == ""


def test_the_search_finds_circles(tmp_path: Path) -> None:
    files = {
        "a/__init__.py": "",
        "a/one.py": "if TYPE_CHECKING:\n    from pkg.b.two import f\n",
        "b/__init__.py": "from pkg.b.two import f\n",
        "b/two.py": "def f():\n    from pkg.a import one\n",
    }
    for path, text in files.items():
        (tmp_path / "pkg" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pkg" / path).write_text(text)
    (tmp_path / "pkg" / "__init__.py").touch()
    modules = modules_of(tmp_path / "pkg")
    assert set(circle(imports(modules, functions=True)).split(" <- ")) >= {"pkg.a.one", "pkg.b.two"}
    assert (
        circle(imports(modules, functions=False)) == circle(folders(imports(modules, functions=False))) == ""
    )
    (tmp_path / "pkg" / "b" / "two.py").write_text("from pkg.a import one\n")
    assert "pkg.a" in circle(folders(imports(modules, functions=False)))
