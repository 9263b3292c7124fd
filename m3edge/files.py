"""Checksums of files, and writing files and folders so that a crash leaves the old one or the new one, never half."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give this file's name to errors of the system that name none: failed writes do not say where to."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def flush_to_disk(path: Path) -> None:
    """Return when the file's content is on the disk and, where the system knows of that, its entry in the folder."""
    with naming(path), path.open("r+b") as file:
        os.fsync(file.fileno())
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    _sync(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to disk, then put it in `path`'s place in one step."""
    temporary = _beside(path)
    file = temporary.open("xb")  # not mkstemp: who may read a model or an index, the user's umask says
    try:
        with naming(path), file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_free(target: Path) -> None:
    """Raise FileExistsError when `target` is there and not an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} already exists; remove it or choose another place")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Build a folder out of sight and show it whole, with all that is in it on the disk.

    Yields an empty folder beside `target`; when the block ends well it becomes `target`, and when it raises
    (an interrupt too) it is removed. Raises FileExistsError when `target` is there and not an empty folder.
    """
    require_free(target)
    new_parents = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(target)
    staging.mkdir()
    try:
        yield staging
        for path in (*staging.rglob("*"), staging):
            _sync(path)
        if target.exists():
            target.rmdir()
        os.replace(staging, target)
        for folder in (target, *new_parents):
            flush_folder(folder.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _beside(path: Path) -> Path:
    """A name that nobody has, in the same folder."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def _sync(path: Path) -> None:
    """Return when a file's content, or a folder's names, are on the disk; only POSIX does it for what is only read."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            with naming(path):
                os.fsync(handle)
        finally:
            os.close(handle)
