"""The file of a graph that hnswlib 0.8 wrote: looked through, before hnswlib follows every number in it unchecked, and
its links, which m3edge searches without it (code_graph.py).

    header     offsets, sizes and parameters, then the element at which a search starts and the levels it has
    elements   each: its links on level 0, its vector, its label
    levels     each element's links on the levels above: their size in bytes, then they themselves

Links on a level are a word whose lower half is their count, then places for as many as a level may have. What rots, a
checksum tells; this is for files that lie.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3edge._graph_numpy import NO_NODE

_HEADER = np.dtype(
    [
        ("level0", "<u8"), ("room", "<u8"), ("elements", "<u8"), ("element_bytes", "<u8"), ("label_at", "<u8"),
        ("vector_at", "<u8"), ("top_level", "<i4"), ("start", "<u4"), ("links", "<u8"), ("links0", "<u8"),
        ("m", "<u8"), ("level_scale", "<f8"), ("ef_construction", "<u8"),
    ]
)  # fmt: skip
_HEADER_BYTES = 96
_MOST_LINKS = 10_000  # hnswlib's limit, whatever is asked for
_BLOCK_ELEMENTS = 16_384  # looked at together: bounds the memory
_COUNT = 0xFFFF


def problem_of_graph(path: Path, dim: int, m: int, ef_construction: int) -> str | None:
    """What in a graph's file would lead hnswlib out of its memory, or None. The other arguments: what it was made with.

    Raises OSError when it cannot be read.
    """
    n_bytes = path.stat().st_size
    if n_bytes < _HEADER_BYTES:
        return "too short for a graph"
    content = np.asarray(np.memmap(path, np.uint8, "r"))
    header = content[:_HEADER_BYTES].view(_HEADER)[0]
    m = min(m, _MOST_LINKS)
    links0_bytes, links_words = 4 * (1 + 2 * m), 1 + m
    element_bytes = links0_bytes + 4 * dim + 8
    expected = (0, element_bytes, element_bytes - 8, links0_bytes, m, 2 * m, m, max(ef_construction, m))
    names = ("level0", "element_bytes", "label_at", "vector_at", "links", "links0", "m", "ef_construction")
    found = tuple(int(header[name]) for name in names)
    if found != expected or not math.isclose(header["level_scale"], 1 / math.log(m)):
        return f"its sizes are {found}, expected {expected}"
    n, room = int(header["elements"]), int(header["room"])
    # Room doubles as documents come; it is memory that is taken whether it is used or not.
    if n * element_bytes > n_bytes - _HEADER_BYTES or not n <= room <= max(1024, 2 * n + 2**20):
        return f"{n} elements in room for {room} do not fit"
    levels_at = _HEADER_BYTES + n * element_bytes
    if (n_bytes - levels_at) % 4:
        return "its levels end within a number"
    elements = content[_HEADER_BYTES:levels_at].reshape(n, element_bytes)
    problem = _problem_of_elements(elements, 2 * m)
    if problem is not None or n == 0:
        return problem
    top_level, start = int(header["top_level"]), int(header["start"])
    return _problem_of_levels(content[levels_at:].view("<u4"), n, links_words, top_level, start)


class StoredLinks(NamedTuple):
    """Which elements are linked, as kernels.GraphLinks wants it: ground, level_starts, levels, start, top_level; and
    labels, int64 [n], the elements' own numbers."""

    ground: np.ndarray
    level_starts: np.ndarray
    levels: np.ndarray
    start: int
    top_level: int
    labels: np.ndarray


def read_links(path: Path, dim: int, m: int, ef_construction: int) -> StoredLinks:
    """The links in a graph's file. The other arguments: what it was made with.

    Raises OSError when it cannot be read, ValueError when it has a problem.
    """
    problem = problem_of_graph(path, dim, m, ef_construction)
    if problem is not None:
        raise ValueError(problem)
    content = np.asarray(np.memmap(path, np.uint8, "r"))
    header = content[:_HEADER_BYTES].view(_HEADER)[0]
    n, m = int(header["elements"]), int(header["m"])
    levels_at = _HEADER_BYTES + n * int(header["element_bytes"])
    elements = content[_HEADER_BYTES:levels_at].reshape(n, int(header["element_bytes"]))
    ground = _used_links(np.ascontiguousarray(elements[:, : 4 * (1 + 2 * m)]).view("<u4"))
    labels = np.ascontiguousarray(elements[:, -8:]).view("<i8")[:, 0]
    words = content[levels_at:].view("<u4")
    places = _places(words, n, 4 * (1 + m))
    assert places is not None
    n_levels = np.zeros(n, np.int64)
    n_levels[places[0]] = places[2]
    level_starts = np.concatenate([[0], np.cumsum(n_levels)]).astype(np.uint32)
    levels = _used_links(_level_links(words, places, 1 + m))
    return StoredLinks(ground, level_starts, levels, int(header["start"]), int(header["top_level"]), labels)


def _used_links(rows: np.ndarray) -> np.ndarray:
    """uint32 [n, places]; rows: uint32 [n, 1 + places], as they lie in the file"""
    is_used = np.arange(rows.shape[1] - 1) < (rows[:, :1] & _COUNT)
    return np.where(is_used, rows[:, 1:], np.uint32(NO_NODE))


def _level_links(words: np.ndarray, places: tuple[np.ndarray, ...], links_words: int) -> np.ndarray:
    """What the file tells of each level of each element above the ground: uint32 [n_levels, links_words]"""
    _, begins, levels = places
    level = np.arange(levels.sum()) - np.repeat(np.cumsum(levels) - levels, levels)  # 0 is the first above the ground
    return words[(np.repeat(begins, levels) + level * links_words)[:, None] + np.arange(links_words)]


def _problem_of_elements(elements: np.ndarray, most: int) -> str | None:
    """elements: uint8 [n, element_bytes]; most: links that each may have"""
    n = len(elements)
    for first in range(0, n, _BLOCK_ELEMENTS):
        block = elements[first : first + _BLOCK_ELEMENTS]
        words = np.ascontiguousarray(block[:, : 4 * (1 + most)]).view("<u4")
        if (words[:, 0] & _COUNT).max() > most:
            return "an element has more links than places for them"
        if words[:, 1:].max() >= n:  # the unused ones too: they are 0 or were in use
            return "an element is linked with one that there is not"
        if np.ascontiguousarray(block[:, -8:]).view("<i8").min() < 0:
            return "a label is no row"
    return None


def _problem_of_levels(words: np.ndarray, n: int, links_words: int, top_level: int, start: int) -> str | None:
    """words: uint32 [n_words], all elements' links above level 0; links_words: what a level's take"""
    places = _places(words, n, 4 * links_words)
    if places is None:
        return "its levels are of another size"
    elements, _, levels = places
    levels_of = np.zeros(n, np.int64)
    levels_of[elements] = levels
    if start >= n or not 0 <= top_level <= levels_of[start]:
        return "it starts at an element, or a level, that there is not"
    level = np.arange(levels.sum()) - np.repeat(np.cumsum(levels) - levels, levels)  # 0 is the first above the ground
    links = _level_links(words, places, links_words)
    counts = links[:, 0] & _COUNT
    if counts.max(initial=0) >= links_words:
        return "an element has more links than places for them"
    used = np.arange(links_words - 1) < counts[:, None]
    targets = np.where(used, links[:, 1:], elements.repeat(levels)[:, None])
    if targets.max(initial=0) >= n or (levels_of[targets] <= level[:, None]).any():
        return "an element is linked with one that is not on its level"
    return None


def _places(words: np.ndarray, n: int, level_bytes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Which elements have levels above the ground, where in `words` these begin, how many they are: each int64 [n].

    None when the sizes do not add up to n elements and all words.
    """
    used: list[int] = np.flatnonzero(words).tolist()
    found: list[tuple[int, int, int]] = []
    at = element = i = 0
    while (i := bisect_left(used, at, i)) < len(used):  # from one size that is not 0 to the next
        element += used[i] - at
        size = int(words[used[i]])
        found.append((element, used[i] + 1, size // level_bytes))
        element += 1
        at = used[i] + 1 + size // 4
        if size % level_bytes or at > len(words):
            return None
    if element + len(words) - at != n:
        return None
    elements, begins, levels = np.array(found, np.int64).reshape(-1, 3).T
    return elements, begins, levels
