"""Rebuild the committed packages under generated/; with --check, say what would change and change nothing."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Specs and targets whose packages are committed, so that every change of the compiler shows as a diff of what it
# writes. Those for a GPU are named after it: one recurrence with an erase, one with a decay per channel, one with a
# decay per head.
PACKAGES = (
    ("specs/models/smollm2_135m.yaml", "cpu"),
    ("specs/models/gdn_hybrid_340m.yaml", "cpu"),
    ("docs/examples/slot_hybrid.yaml", "cpu"),
    ("specs/models/gdn_hybrid_340m.yaml", "h100"),
    ("specs/models/gla_small.yaml", "h100"),
    ("specs/models/mamba2_small.yaml", "h100"),
)


def differences(first: Path, second: Path) -> list[str]:
    """Paths that only one folder has or whose bytes differ; caches left out."""

    def content(folder: Path) -> dict[str, bytes]:
        files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}

    a, b = content(first), content(second)
    return sorted(path for path in a.keys() | b.keys() if a.get(path) != b.get(path))


def write(spec: Path, target: str, folder: Path) -> None:
    """The package of a spec. Kernels are not compiled: that says whether they fit, and changes no byte."""
    from archc.output.write import write_package
    from archc.pipeline import sources_of

    write_package(sources_of(spec, target), folder)


def main() -> int:
    """Rebuild, or compare. Exit code 1 when a committed package is not what the compiler writes today."""
    changed = []
    for spec, target in PACKAGES:
        name = Path(spec).stem if target == "cpu" else f"{Path(spec).stem}_{target}"
        committed = ROOT / "generated" / name
        if "--check" not in sys.argv:
            write(ROOT / spec, target, committed)
            print(f"generated/{name}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            write(ROOT / spec, target, Path(folder) / name)
            changed += [f"generated/{name}/{path}" for path in differences(committed, Path(folder) / name)]
    for path in changed:
        print(
            f"{path} is not what the compiler writes: run `make build` and look at the diff", file=sys.stderr
        )
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
