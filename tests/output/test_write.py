"""Writing packages: what is written, what is refused, what of the user's survives."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from archc.output import MANIFEST_NAME, eject, write_package
from archc.output.manifest import check_paths
from archc.spec.diagnostics import MachineError, SpecError

FILES = {
    "__init__.py": "from .model import Model\n",
    "model.py": "class Model:\n    pass\n",
    "ops/scan.py": "x = 1\n",
}


def content(folder: Path) -> dict[str, str]:
    """Path -> text of every file under `folder`, the manifest left out."""
    return {
        p.relative_to(folder).as_posix(): p.read_text()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST_NAME
    }


def refusal(*args: object, **kwargs: bool) -> str:
    with pytest.raises(SpecError) as caught:
        write_package(*args, **kwargs)  # type: ignore[arg-type]
    (diagnostic,) = caught.value.diagnostics
    return f"{diagnostic.code}: {diagnostic.message}\n{diagnostic.note}\n{diagnostic.help}"


def test_a_package_and_its_manifest_are_written(tmp_path: Path) -> None:
    report = write_package(FILES, tmp_path / "deep" / "x")
    assert content(tmp_path / "deep" / "x") == FILES
    assert report.written == tuple(sorted(FILES)) and not report.unchanged
    assert os.listdir(tmp_path / "deep") == ["x"], "nothing is left beside the package"


def test_the_manifest_has_the_same_bytes_anywhere(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "a")
    write_package(dict(reversed(FILES.items())), tmp_path / "elsewhere" / "b")
    first = (tmp_path / "a" / MANIFEST_NAME).read_bytes()
    assert first == (tmp_path / "elsewhere" / "b" / MANIFEST_NAME).read_bytes()
    assert set(json.loads(first)) == {"archc_manifest", "files"}
    assert str(tmp_path).encode() not in first


def test_a_rebuild_to_the_same_bytes_touches_nothing(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "x").rglob("*")}
    report = write_package(FILES, tmp_path / "x")
    assert report.unchanged == tuple(sorted(FILES)) and not report.written
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "x").rglob("*")}


def test_a_rebuild_removes_what_is_no_longer_part_of_the_package(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    report = write_package({"__init__.py": "new\n"}, tmp_path / "x")
    assert content(tmp_path / "x") == {"__init__.py": "new\n"}
    assert report.removed == ("model.py", "ops/scan.py") and report.written == ("__init__.py",)
    assert not (tmp_path / "x" / "ops").exists()


def test_a_deleted_file_comes_back(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    (tmp_path / "x" / "model.py").unlink()
    assert write_package(FILES, tmp_path / "x").written == ("model.py",)
    assert content(tmp_path / "x") == FILES


def test_an_edited_file_stops_a_rebuild_with_the_diff_and_three_ways_out(tmp_path: Path) -> None:
    out = tmp_path / "x"
    write_package(FILES, out)
    (out / "model.py").write_text("class Model:\n    mine = 1\n")
    said = refusal(FILES, out)
    assert said.startswith("E901") and "model.py" in said
    assert "-    mine = 1" in said and "+    pass" in said
    assert "--force" in said and "--keep" in said and f"archc eject {out}" in said
    assert "mine" in (out / "model.py").read_text(), "nothing was written"


def test_an_edit_counts_even_where_the_new_package_changes_that_file_too(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    (tmp_path / "x" / "model.py").write_text("mine\n")
    assert "E901" in refusal({**FILES, "model.py": "theirs\n"}, tmp_path / "x")


def test_an_edit_to_a_file_that_the_new_package_drops_is_an_edit(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    (tmp_path / "x" / "model.py").write_text("mine\n")
    assert "no longer part of the package" in refusal({"__init__.py": ""}, tmp_path / "x")
    write_package({"__init__.py": ""}, tmp_path / "x", keep=True)
    assert content(tmp_path / "x") == {"__init__.py": "", "model.py": "mine\n"}


def test_force_overwrites_edits(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    (tmp_path / "x" / "model.py").write_text("mine\n")
    write_package(FILES, tmp_path / "x", force=True)
    assert content(tmp_path / "x") == FILES


def test_keep_leaves_edits_and_the_next_rebuild_still_knows_them(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    (tmp_path / "x" / "model.py").write_text("mine\n")
    report = write_package({**FILES, "ops/scan.py": "x = 2\n"}, tmp_path / "x", keep=True)
    assert report.kept == ("model.py",) and report.written == ("ops/scan.py",)
    assert content(tmp_path / "x") == {**FILES, "model.py": "mine\n", "ops/scan.py": "x = 2\n"}
    assert "E901" in refusal(FILES, tmp_path / "x")


def test_force_and_keep_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_package(FILES, tmp_path / "x", force=True, keep=True)


def test_files_of_the_user_inside_the_package_survive_a_rebuild(tmp_path: Path) -> None:
    out = tmp_path / "x"
    write_package(FILES, out)
    (out / "notes").mkdir()
    (out / "notes" / "today.md").write_text("loss 2.1\n")
    (out / "empty").mkdir()
    (out / "latest").symlink_to("notes/today.md")
    (out / "data").symlink_to("/nowhere/at/all")
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "model.pyc").write_text("stale")
    report = write_package({"__init__.py": "new\n"}, out)
    assert report.carried == ("data", "empty", "latest", "notes/today.md")
    assert (out / "notes" / "today.md").read_text() == "loss 2.1\n"
    assert (out / "empty").is_dir() and not (out / "__pycache__").exists()
    assert os.readlink(out / "latest") == "notes/today.md" and os.readlink(out / "data") == "/nowhere/at/all"


def test_a_file_of_the_user_where_the_new_package_has_one_is_protected(tmp_path: Path) -> None:
    write_package({"__init__.py": ""}, tmp_path / "x")
    (tmp_path / "x" / "model.py").write_text("mine\n")
    assert "E901" in refusal(FILES, tmp_path / "x")


@pytest.mark.parametrize("options", [{}, {"force": True}, {"keep": True}])
def test_a_folder_that_archc_did_not_write_is_refused_whatever_the_options(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("years of work")
    assert "E902" in refusal(FILES, tmp_path / "x", **options)
    assert os.listdir(tmp_path / "x") == ["thesis.tex"]


def test_an_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir(mode=0o750)
    write_package(FILES, tmp_path / "x")
    assert content(tmp_path / "x") == FILES
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o750, "the folder keeps its mode"


def test_a_file_and_the_root_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    assert "it is a file" in refusal(FILES, tmp_path / "x")
    assert "root" in refusal(FILES, Path("/"))


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{" * 100_000,
        '{"files": {}}',
        '{"archc_manifest": 1, "files": {"../escape.py": "%s"}}' % ("0" * 64),
        '{"archc_manifest": 1, "files": {"/etc/passwd": "%s"}}' % ("0" * 64),
        '{"archc_manifest": 1, "files": {"a.py": "short"}}',
        '{"archc_manifest": 1, "files": {"a.py": null}}',
        '{"archc_manifest": 2, "files": {}}',
    ],
)
def test_a_damaged_manifest_is_no_manifest(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / MANIFEST_NAME).write_text(manifest)
    (tmp_path / "escape.py").write_text("outside")
    assert "E902" in refusal(FILES, tmp_path / "x", force=True)
    assert (tmp_path / "escape.py").read_text() == "outside"


@pytest.mark.parametrize(
    "path",
    ["", "/a.py", "../a.py", "a/../b.py", "a//b.py", "./a.py", "a/", "a\\b.py", "c:a.py", "a\n.py", "a\0.py"]
    + ["manifest.json", "Manifest.JSON", "x" * 1001],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError):
        write_package({path: "content"}, tmp_path / "out" / "x")
    assert not (tmp_path / "out").exists()


def test_paths_that_get_in_each_others_way_are_refused() -> None:
    with pytest.raises(ValueError, match="case"):
        check_paths(["Model.py", "model.py"])
    with pytest.raises(ValueError, match="both a file and a folder"):
        check_paths(["ops", "ops/scan.py"])
    check_paths(["ops/scan.py", "ops/norm.py", "ops_more.py"])


def test_eject_makes_the_package_the_users(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    assert eject(tmp_path / "x") == tuple(sorted(FILES))
    assert content(tmp_path / "x") == FILES
    assert "E902" in refusal(FILES, tmp_path / "x", force=True)
    with pytest.raises(SpecError):
        eject(tmp_path / "x")
    with pytest.raises(SpecError):
        eject(tmp_path / "no" / "such")


# --- links: nothing outside the folder is ever written, read into the package, or removed


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious.py").write_text("precious\n")
    (folder / "scan.py").write_text("precious\n")
    return folder


def test_an_output_that_is_a_link_is_refused(tmp_path: Path, outside: Path) -> None:
    write_package(FILES, tmp_path / "real")
    (tmp_path / "x").symlink_to(tmp_path / "real")
    assert "it is a link" in refusal(FILES, tmp_path / "x", force=True)
    (tmp_path / "y").symlink_to(tmp_path / "dangling")
    assert "it is a link" in refusal(FILES, tmp_path / "y", force=True)


@pytest.mark.parametrize("options", [{"force": True}, {"keep": True}])
def test_a_generated_file_replaced_by_a_link(tmp_path: Path, outside: Path, options: dict[str, bool]) -> None:
    out = tmp_path / "x"
    write_package(FILES, out)
    (out / "model.py").unlink()
    (out / "model.py").symlink_to(outside / "precious.py")
    assert "a link to" in refusal(FILES, out)
    write_package(FILES, out, **options)
    assert (outside / "precious.py").read_text() == "precious\n"
    assert (out / "model.py").is_symlink() == ("keep" in options)


def test_a_generated_folder_replaced_by_a_link(tmp_path: Path, outside: Path) -> None:
    out = tmp_path / "x"
    write_package(FILES, out)
    (out / "ops" / "scan.py").unlink()
    (out / "ops").rmdir()
    (out / "ops").symlink_to(outside)
    assert "a link to" in refusal(FILES, out)
    write_package(FILES, out, force=True)
    assert (outside / "scan.py").read_text() == "precious\n" and sorted(os.listdir(outside)) == [
        "precious.py",
        "scan.py",
    ]
    assert content(out) == FILES and not (out / "ops").is_symlink()


def test_a_link_kept_in_place_of_a_generated_folder_is_not_written_through(
    tmp_path: Path, outside: Path
) -> None:
    out = tmp_path / "x"
    write_package({"__init__.py": ""}, out)
    (out / "ops").symlink_to(outside)
    write_package({**FILES, "ops/new.py": "n\n"}, out, keep=True)
    assert (out / "ops").is_symlink() and sorted(os.listdir(outside)) == ["precious.py", "scan.py"]
    assert (outside / "scan.py").read_text() == "precious\n"


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    out = tmp_path / "x"
    write_package({"__init__.py": ""}, out)
    (out / "ops").write_text("mine\n")
    (out / "model.py").mkdir()
    (out / "model.py" / "notes.md").write_text("mine too\n")
    said = refusal(FILES, out)
    assert "ops" in said and "a folder" in said
    write_package(FILES, out, keep=True)
    assert content(out) == {
        "__init__.py": FILES["__init__.py"],
        "ops": "mine\n",
        "model.py/notes.md": "mine too\n",
    }
    write_package(FILES, out, force=True)
    assert content(out) == FILES


def test_a_package_whose_folder_becomes_a_file_and_back(tmp_path: Path) -> None:
    for files in (FILES, {"ops": "now a file\n"}, FILES):
        write_package(files, tmp_path / "x")
        assert content(tmp_path / "x") == files


def test_links_planted_where_the_staging_folder_and_the_lock_go(tmp_path: Path, outside: Path) -> None:
    (tmp_path / ".x.archc-new").symlink_to(outside)
    write_package(FILES, tmp_path / "x")
    assert content(tmp_path / "x") == FILES and len(os.listdir(outside)) == 2
    (tmp_path / ".x.archc-lock").symlink_to(outside / "precious.py")
    with pytest.raises(MachineError):
        write_package({"a.py": ""}, tmp_path / "x")
    assert (outside / "precious.py").read_text() == "precious\n"


def test_a_manifest_that_is_a_link_is_no_manifest(tmp_path: Path) -> None:
    write_package(FILES, tmp_path / "x")
    manifest = tmp_path / "x" / MANIFEST_NAME
    manifest.rename(tmp_path / "moved.json")
    manifest.symlink_to(tmp_path / "moved.json")
    assert "E902" in refusal(FILES, tmp_path / "x", force=True)


def test_what_was_written_is_found_by_the_process_that_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    time = tmp_path.stat().st_mtime_ns
    assert importlib.util.find_spec("written_just_now") is None  # the folder is listed
    write_package({"__init__.py": ""}, tmp_path / "written_just_now")
    os.utime(tmp_path, ns=(time, time))  # by a file system with a slow clock
    assert importlib.util.find_spec("written_just_now") is not None
