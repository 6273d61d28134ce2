"""The two files of a package with what its bodies do entry by entry: `gates.py` and `gates_kernels.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archc.kernels.fusing.gate_functions import helpers_of
from archc.kernels.fusing.gate_view import Gate
from archc.templates import environment

FILE = "gates"
# As the template's own functions cut tiles.
ENTRIES = 1024  # of a program's tile
COLUMNS = 256  # of them of one token, where a program need not have all
TOKENS = 128  # of a program that sums over them


def once(gates: Mapping[str, Sequence[Gate]]) -> list[Gate]:
    """The regions of all modules, those of one name once."""
    return list({gate.name: gate for found in gates.values() for gate in found}.values())


def gate_files(gates: Sequence[Gate], legend: Sequence[str] = ()) -> dict[str, str]:
    """Path -> text, nothing where a model has no region. `legend`: lines that say what the letters of axes are."""
    if not gates:
        return {}
    imports: dict[str, set[str]] = {}
    for file, name in frozenset().union(*(gate.imports for gate in gates)):
        imports.setdefault(file, set()).add(name)
    lines = [line for g in gates for line in (*g.forward, *g.before, *g.inner, *g.after)]
    shared = {
        "gates": gates,
        "promoted": any(result.dtype.startswith("_promoted") for gate in gates for result in gate.results),
    }
    templates = environment()
    return {
        f"{FILE}.py": templates.get_template("kernels/gates.py.jinja").render(
            legend=legend,
            functional=any(gate.functional for gate in gates),
            imports=sorted((file, sorted(names)) for file, names in imports.items()),
            **shared,
        ),
        f"{FILE}_kernels.py": templates.get_template("kernels/gates_kernels.py.jinja").render(
            helpers=helpers_of(lines),
            entries=ENTRIES,
            columns=COLUMNS,
            tokens=TOKENS,
            summed=any(gate.summed for gate in gates),
            **shared,
        ),
    }
