"""A module that a test has just written is the one that is imported, wherever its name was seen before."""

from __future__ import annotations

from pathlib import Path

from tests.support.imports import imported


def written(folder: Path, package: str, value: int) -> Path:
    """A package whose module `part` tells the value that its module `constant` holds."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / "constant.py").write_text(f"VALUE = {value}\n")
    (folder / package / "part.py").write_text("from .constant import VALUE\n")
    return folder


def test_the_same_name_in_another_folder(tmp_path: Path) -> None:
    """A fixture of a file is made again when a worker comes back to the file."""
    first = written(tmp_path / "first", "package_of_a_test", 1)
    assert imported("package_of_a_test.part", first).VALUE == 1
    second = written(tmp_path / "second", "package_of_a_test", 2)
    (second / "package_of_a_test" / "later.py").write_text("from .part import VALUE\n")
    assert imported("package_of_a_test.later", second).VALUE == 2


def test_the_same_folder_is_read_once(tmp_path: Path) -> None:
    folder = written(tmp_path, "package_of_another_test", 1)
    assert imported("package_of_another_test.part", folder) is imported(
        "package_of_another_test.part", folder
    )
