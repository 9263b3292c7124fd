"""Looks through a file that hnswlib 0.8 wrote before hnswlib reads it, which follows every number in it unchecked.

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

import numpy as np

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
    elements, begins, levels = places
    levels_of = np.zeros(n, np.int64)
    levels_of[elements] = levels
    if start >= n or not 0 <= top_level <= levels_of[start]:
        return "it starts at an element, or a level, that there is not"
    level = np.arange(levels.sum()) - np.repeat(np.cumsum(levels) - levels, levels)  # 0 is the first above the ground
    links = words[(np.repeat(begins, levels) + level * links_words)[:, None] + np.arange(links_words)]
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
