"""Derived files: what can be made again from the truth, kept so that opening is fast.

derived.json names them, with their checksums and the state of the index they were made from. It is replaced last and in
one step, and the files' names are never used twice: whoever is killed while saving leaves the older ones as they were.
A file that does not match its checksum is not used: hnswlib, for one, would load flipped bytes without a word.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from m3edge.errors import FormatError
from m3edge.files import crc32_file, flush_to_disk, write_atomically

MANIFEST = "derived.json"
_VERSION = 1
# Files of ours that may be left over: derived ones, those of version 2 and their stamps, token files, unfinished ones.
_OURS = re.compile(r"\w+-\d+-\d+\.\w+|(dense\.hnsw|postings\.npz)(\.json)?|tokens(-\d+)?\.\w+|\..+\.tmp")


class Stamp(NamedTuple):
    """The state of an index: how often it was compacted and changed, and its newest row."""

    epoch: int
    generation: int
    last_row: int


class Derived(NamedTuple):
    """stamp: what the files were made from; files: their paths, by the parts' names"""

    stamp: Stamp
    files: Mapping[str, Path]


def save_derived(folder: Path, stamp: Stamp, parts: Mapping[str, Callable[[Path], None]]) -> None:
    """Let each of `parts` write its file, name them in derived.json, and remove those it named before.

    parts: by file name; "dense.hnsw" becomes "dense-7-1.hnsw" in generation 7, epoch 1
    The caller holds the writer's lock.
    """
    entries = {}
    for name, write in parts.items():
        stem, ending = name.split(".")
        path = folder / f"{stem}-{stamp.generation}-{stamp.epoch}.{ending}"
        try:
            write(path)
            flush_to_disk(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        entries[name] = {"file": path.name, "size": path.stat().st_size, "crc32": crc32_file(path)}
    content: dict[str, Any] = {"version": _VERSION, **stamp._asdict(), "files": entries}
    content["crc32"] = _crc32(content)
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_derived(folder: Path, *, verify: bool = True) -> Derived | None:
    """What derived.json names; None when there is none. Raises FormatError when it, or a file of it, is damaged."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content["version"] > _VERSION:
            return None  # a newer m3edge's: not damaged, only not for us
        if content.pop("crc32") != _crc32(content):
            raise ValueError("checksum differs")
        stamp = Stamp(*(int(content[field]) for field in Stamp._fields))
        entries = {name: (folder / entry["file"], entry) for name, entry in content["files"].items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged ({error}); it is made again from the documents") from error
    for file, entry in entries.values():
        if not file.is_file():
            raise FormatError(f"{file}: missing; it is made again from the documents")
        if verify and (file.stat().st_size != entry["size"] or crc32_file(file) != entry["crc32"]):
            raise FormatError(f"{file}: damaged (checksum differs); it is made again from the documents")
    return Derived(stamp, {name: file for name, (file, _) in entries.items()})


def usable_derived(folder: Path) -> Derived | None:
    """As `read_derived`, but damage is a RuntimeWarning, and None is returned."""
    problem = None
    for _ in range(3):  # a writer may have replaced the files between our looking and our reading
        try:
            return read_derived(folder)
        except FormatError as error:
            problem = error
    warnings.warn(str(problem), RuntimeWarning, stacklevel=2)
    return None


def forget_newer(folder: Path, generation: int) -> None:
    """Drop derived.json when it is newer than the store: an older index.sqlite was put back, and its next generations
    will be others. The caller holds the writer's lock, and is about to commit the one after `generation`."""
    try:
        derived = read_derived(folder, verify=False)
    except FormatError:
        return
    if derived is not None and derived.stamp.generation > generation:
        (folder / MANIFEST).unlink()


def remove_leftovers(folder: Path, token_file: str) -> None:
    """Remove files that an interrupted job, an older version or an earlier epoch left, and nothing refers to.

    token_file: the one in use. The caller holds the writer's lock. What cannot be removed (on Windows: what a reader
    still has open) is left for the next time.
    """
    used = {token_file}
    try:
        derived = read_derived(folder, verify=False)
    except FormatError:
        derived = None
    if derived is not None:
        used |= {path.name for path in derived.files.values()}
    for path in folder.iterdir():
        if path.name not in used and _OURS.fullmatch(path.name):
            try:
                os.unlink(path)
            except OSError:
                continue


def _crc32(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
