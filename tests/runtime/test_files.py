"""Files and folders that appear whole, are on the disk when it is said, and are for whom the user's umask lets in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from m3edge.files import new_folder, write_atomically

pytestmark = pytest.mark.skipif(os.name != "posix", reason="only POSIX has a umask, and lets folders be synced")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_says_who_may_read(umask, tmp_path):
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "folder") as folder:
            write_atomically(folder / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_new_folder_is_on_the_disk_before_it_is_shown_and_its_name_afterwards(tmp_path, monkeypatch):
    events: list[str] = []
    inodes: dict[int, str] = {}

    def fsync(handle: int) -> None:
        events.append(inodes.get(os.fstat(handle).st_ino, "a parent"))

    with new_folder(tmp_path / "new" / "parents" / "folder") as folder:
        (folder / "inner").mkdir()
        for name in ("file", "inner/file"):
            (folder / name).write_text("x")
        for path in (folder, *folder.rglob("*")):
            inodes[path.stat().st_ino] = str(path.relative_to(folder))
        replace = os.replace
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", lambda *paths: (events.append("shown"), replace(*paths)))
    shown = events.index("shown")
    assert sorted(events[:shown]) == [".", "file", "inner", "inner/file"]
    assert events[shown + 1 :] == ["a parent"] * 3  # of "folder", "parents" and "new"


def test_what_fails_leaves_nothing(tmp_path: Path):
    for write in (write_half_a_folder, write_half_a_file):
        with pytest.raises((ZeroDivisionError, TypeError)):
            write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def write_half_a_folder(place: Path) -> None:
    with new_folder(place / "folder") as folder:
        (folder / "file").write_text("x")
        1 / 0  # noqa: B018


def write_half_a_file(place: Path) -> None:
    write_atomically(place / "file", "no bytes")  # type: ignore[arg-type]
