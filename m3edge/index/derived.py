"""Derived files: what can be made again from the truth, kept so that opening is fast.

derived.json names them, with their checksums and the state of the index they were made from. It is replaced last and in
one step, and the files' names are never used twice: whoever is killed while saving leaves the older ones as they were.
A file that does not match its checksum is not used: hnswlib, for one, would load flipped bytes without a word. The
others then still are: a graph takes long to build.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from m3edge import kernels
from m3edge.errors import FormatError
from m3edge.files import flush_to_disk, naming, write_atomically

MANIFEST = "derived.json"
_VERSION = 1
_BUFFER_BYTES = 1 << 18  # read into again and again, it stays in the processor's cache
_NAMED = re.compile(r"\w+-\d+-\d+(-\d+)?\.\w+")  # what derived.json may name: a later version may have other parts
# What may be left over and is removed. Users may keep files of their own here: only names that m3edge gives are ours.
_OURS = re.compile(
    r"(dense-\d+-\d+(-\d+)?\.(npy|hnsw)|(postings|columns)-\d+-\d+(-\d+)?\.npz)"
    r"|tokens(-\d+)?\.(i8|f16|i4|b1)"
    r"|(dense\.hnsw|postings\.npz)(\.json)?"  # version 2's, and their stamps
    r"|\.(derived|dense\.hnsw|postings\.npz)\.json\.\w+\.tmp",  # what write_atomically did not finish
    re.ASCII,
)


class Stamp(NamedTuple):
    """The state of an index: how often it was compacted and changed, and its newest row."""

    epoch: int
    generation: int
    last_row: int


class Derived(NamedTuple):
    """stamp: what the files were made from; files: their paths, by the parts' names; damaged: what is wrong with those
    that are damaged or missing, and named in `files` no more"""

    stamp: Stamp
    files: Mapping[str, Path]
    damaged: Mapping[str, str]


def save_derived(
    folder: Path, stamp: Stamp, parts: Mapping[str, Callable[[Path], None]], unchanged: Mapping[str, str]
) -> dict[str, str]:
    """Let each of `parts` write its file and name them in derived.json. Returns the files' names, by the parts'.

    parts:     by file name; "dense.hnsw" becomes "dense-7-1.hnsw" in generation 7, epoch 1
    unchanged: the files of parts that would be written as they are; they stay, unless derived.json knows others
    The caller holds the writer's lock, and removes what is left over.
    """
    entries = {}
    try:
        known = _read_manifest(folder / MANIFEST)["files"]
    except (FileNotFoundError, FormatError):
        known = {}
    for name, write in parts.items():
        if name in unchanged and known.get(name, {}).get("file") == unchanged[name]:
            entries[name] = known[name]
            continue
        path = _new_path(folder, name, stamp)
        try:
            with naming(path):
                write(path)
            flush_to_disk(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        entries[name] = {"file": path.name, "size": path.stat().st_size, "crc32": _crc32_of_file(path)}
    _write_manifest(folder, stamp, entries)
    return {name: entry["file"] for name, entry in entries.items()}


def read_derived(folder: Path, *, verify: bool = True) -> Derived | None:
    """What derived.json names; None when there is none. Raises FormatError when derived.json itself is damaged."""
    try:
        content = _read_manifest(folder / MANIFEST)
    except FileNotFoundError:
        return None
    if content["version"] > _VERSION:
        return None  # a newer m3edge's: not damaged, only not for us
    entries: dict[str, dict[str, Any]] = content["files"]
    with ThreadPoolExecutor(max(1, len(entries))) as threads:  # each with a file of its own: checksums take long
        problems = list(threads.map(lambda entry: _problem_of(folder, entry, verify), entries.values()))
    damaged = {name: problem for name, problem in zip(entries, problems, strict=True) if problem is not None}
    files = {name: folder / entry["file"] for name, entry in entries.items() if name not in damaged}
    return Derived(Stamp(*(content[field] for field in Stamp._fields)), files, damaged)


def usable_derived(folder: Path) -> Derived | None:
    """As `read_derived`, but what is damaged is a RuntimeWarning."""
    derived, problems = derived_and_problems(folder)
    for problem in problems:
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    return derived


def derived_and_problems(folder: Path) -> tuple[Derived | None, Sequence[str]]:
    """As `read_derived`, and what is wrong with derived.json or its files: each begins with its file's name."""
    derived: Derived | None = None
    problems: list[str] = []
    for _ in range(3):  # a writer may have replaced the files between our looking and our reading
        try:
            derived = read_derived(folder)
            problems = [*derived.damaged.values()] if derived is not None else []
        except FormatError as error:
            derived, problems = None, [str(error)]
        if not problems:
            break
    return derived, problems


def forget_damaged(folder: Path) -> None:
    """Name no damaged file in derived.json any more: opening the index makes these again, without a warning.

    The caller holds the writer's lock.
    """
    try:
        derived = read_derived(folder)
        if derived is not None and derived.damaged:
            known = _read_manifest(folder / MANIFEST)["files"]
            _write_manifest(folder, derived.stamp, {name: known[name] for name in derived.files})
    except FormatError:
        (folder / MANIFEST).unlink()


def forget_newer(folder: Path, generation: int) -> None:
    """Drop derived.json when it is newer than the store: an older index.sqlite was put back, and its next generations
    will be others. The caller holds the writer's lock, and has committed nothing yet: `generation` is the newest."""
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


def _new_path(folder: Path, name: str, stamp: Stamp) -> Path:
    """A name that no file has: whoever has an older file of this generation mapped keeps it."""
    stem, ending = name.split(".")
    path = folder / f"{stem}-{stamp.generation}-{stamp.epoch}.{ending}"
    attempt = 0
    while path.exists():
        attempt += 1
        path = folder / f"{stem}-{stamp.generation}-{stamp.epoch}-{attempt}.{ending}"
    return path


def _write_manifest(folder: Path, stamp: Stamp, entries: Mapping[str, Any]) -> None:
    content: dict[str, Any] = {"version": _VERSION, **stamp._asdict(), "files": entries}
    content["crc32"] = _crc32(content)
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())


def _read_manifest(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, or FormatError when what it says is not what was written."""
    try:
        content = json.loads(path.read_bytes())
        if not _is_number(content["version"]):
            raise ValueError("its version is no number")
        if content["version"] > _VERSION:
            return {**content, "files": {}}
        if content.pop("crc32") != _crc32(content):
            raise ValueError("checksum differs")
        if not all(_is_number(content[field]) for field in Stamp._fields):
            raise ValueError(f"{', '.join(Stamp._fields)} must be numbers")
        for entry in content["files"].values():
            if not (_NAMED.fullmatch(entry["file"]) and _is_number(entry["size"]) and _is_number(entry["crc32"])):
                raise ValueError("it names files that are none of ours")
        return content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged ({error}); it is made again from the documents") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _problem_of(folder: Path, entry: Mapping[str, Any], verify: bool) -> str | None:
    file = folder / entry["file"]
    try:
        if not file.is_file():
            return f"{file}: missing; it is made again from the documents"
        if verify and (file.stat().st_size != entry["size"] or _crc32_of_file(file) != entry["crc32"]):
            return f"{file}: damaged (checksum differs); it is made again from the documents"
    except OSError as error:  # removed between two looks at it, or a disk that cannot read it
        return f"{file}: cannot be read ({error}); it is made again from the documents"
    return None


def _crc32(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _crc32_of_file(path: Path) -> int:
    crc32 = 0
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            crc32 = kernels.crc32(buffer[:n], crc32)
    return crc32
