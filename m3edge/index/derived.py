"""Derived files: what can be made again from the truth, kept so that opening is fast.

Beside each file lies a stamp, NAME.json: the state of the index it was made from and the file's checksum. A file whose
stamp is missing or does not match is not used: hnswlib, for one, would load flipped bytes without a word.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from m3edge.files import sha256_file, write_atomically


class Stamp(NamedTuple):
    """The state of an index: how often it was changed, and its newest row."""

    generation: int
    last_row: int


def save_derived(path: Path, stamp: Stamp, write: Callable[[Path], None]) -> None:
    """Let `write` make the file, put it in place in one step, then its stamp."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        checksum = sha256_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    write_atomically(_stamp_path(path), json.dumps({**stamp._asdict(), "sha256": checksum}).encode())


def derived_stamp(path: Path) -> Stamp | None:
    """The stamp of a whole derived file; None when there is no file, and, with a warning, when it is damaged."""
    if not path.exists() and not _stamp_path(path).exists():
        return None
    try:
        content = json.loads(_stamp_path(path).read_bytes())
        if content["sha256"] == sha256_file(path):
            return Stamp(int(content["generation"]), int(content["last_row"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # said below, whatever of the two files is missing or unreadable
    warnings.warn(f"{path}: damaged or incomplete; it is made again from the documents", RuntimeWarning, stacklevel=2)
    return None


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
