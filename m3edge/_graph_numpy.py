"""The search of a graph in numpy: which vectors it leads a query to, told by their 8-bit codes (see _kernels_numpy.py).

The graph is a hierarchical navigable small world (Malkov and Yashunin, arXiv 1603.09320): every node is linked with
near ones on the ground, fewer and fewer of them also on levels above it, where the links are longer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from m3edge._dense_numpy import query_codes
from m3edge._shared_numpy import check_array

NO_NODE = 0xFFFFFFFF


class GraphLinks:
    """Which nodes of a graph are linked. Nodes are rows of codes, 0, 1, 2 …; a row of links that has fewer than places
    for them ends with NO_NODE."""

    def __init__(
        self, ground: np.ndarray, level_starts: np.ndarray, levels: np.ndarray, start: int, top_level: int
    ) -> None:
        """
        ground:       uint32 [n, places], each node's links on the ground
        level_starts: uint32 [n + 1]; levels: uint32 [m, places]; node i has the rows level_starts[i] to
            level_starts[i + 1] of `levels`, its links on level 1, 2, …
        start, top_level: where a search begins, the level counted from the ground, which is 0
        Raises TypeError for an array of another type or not C-contiguous, ValueError for what is no graph.
        """
        check_array("ground", ground, np.uint32, 2)
        check_array("level_starts", level_starts, np.uint32, 1)
        check_array("levels", levels, np.uint32, 2)
        n = len(ground)
        if len(level_starts) != n + 1:
            raise ValueError("level_starts must be one longer than ground")
        if start < 0 or top_level < 0:
            raise ValueError("ground, start and top_level must be those of a graph")
        starts = level_starts.astype(np.int64)
        n_levels = np.diff(starts)
        is_sound = starts[0] == 0 and starts[-1] == len(levels) and (n_levels >= 0).all()
        if is_sound and n:
            level = np.arange(len(levels)) - np.repeat(starts[:-1], n_levels)  # 0 is the first above the ground
            targets = np.where(levels == NO_NODE, 0, levels).astype(np.int64)
            is_sound = (
                start < n
                and top_level <= n_levels[start]
                and ((ground < n) | (ground == NO_NODE)).all()
                and (targets < n).all()
                and ((n_levels[targets] > level[:, None]) | (levels == NO_NODE)).all()
            )
        if not is_sound:
            raise ValueError("ground, level_starts and levels must be those of a graph")
        self._ground, self._starts, self._levels, self._start, self._top = ground, starts, levels, start, top_level

    def __len__(self) -> int:
        return len(self._ground)

    def candidates(
        self,
        query: np.ndarray,
        codes: np.ndarray,
        scales: np.ndarray,
        allowed: np.ndarray,
        effort: int,
        most: int,
    ) -> np.ndarray | None:
        """Rows near the query: the best of those that the links lead to.

        The search follows the links of the best node that it has found and not followed yet, until `effort` allowed
        nodes are better than all of these; it begins with the best node of the levels above the ground.

        query:   float32 [dim], finite
        codes, scales: int8 [m, dim], float32 [m], from `dense_codes`, at least one for each node
        allowed: bool [m], what may be found; the others are walked over
        effort:  how many are kept in view and returned, where there are so many; the more, the fewer are missed
        most:    gives up where more than so many nodes of the ground have to be looked at
        returns int64 [at most effort], by falling score of the codes; None where it gave up
        Raises TypeError for an array of another type or not C-contiguous, ValueError for what does not fit together.
        """
        check_array("query", query, np.float32, 1)
        check_array("codes", codes, np.int8, 2)
        check_array("scales", scales, np.float32, 1)
        check_array("allowed", allowed, np.bool_, 1)
        if len(query) != codes.shape[1]:
            raise ValueError(f"query and codes must be of one width, got {len(query)} and {codes.shape[1]}")
        if len(codes) < len(self._ground) or not len(codes) == len(scales) == len(allowed):
            raise ValueError("codes, scales and allowed must be of one length, at least that of the graph")
        if not np.isfinite(query).all():
            raise ValueError("query must be finite, got an infinity or a NaN")
        if effort < 1 or most < 1:
            raise ValueError(f"effort and most must be at least 1, got {effort} and {most}")
        if len(self._ground) == 0:
            return np.empty(0, np.int64)

        numbers, unit = query_codes(query)

        def scored(nodes: list[int]) -> list[tuple[float, int]]:
            """Negative scores, for heaps, and with equal ones the smaller node first"""
            scores = (codes[nodes].astype(np.int32) @ numbers) * scales[nodes].astype(np.float64) * unit
            return [(-score, node) for score, node in zip(scores.tolist(), nodes, strict=True)]

        nearest = self._descend(scored)
        seen = {nearest[1]}
        open_nodes = [nearest]
        found = [(-nearest[0], -nearest[1])] if allowed[nearest[1]] else []  # a heap whose first is the worst
        while open_nodes and _is_wanted(open_nodes[0], found, effort):
            links = self._ground[heapq.heappop(open_nodes)[1]]
            new = [node for node in dict.fromkeys(_used(links)) if node not in seen]
            seen.update(new)
            if len(seen) > most:
                return None
            for score, node in scored(new) if new else ():
                if not _is_wanted((score, node), found, effort):
                    continue
                heapq.heappush(open_nodes, (score, node))
                if allowed[node]:
                    heapq.heappush(found, (-score, -node))
                    if len(found) > effort:
                        heapq.heappop(found)
        return np.array([-node for _, node in sorted(found, reverse=True)], np.int64)

    def _descend(self, scored: Callable[[list[int]], list[tuple[float, int]]]) -> tuple[float, int]:
        (nearest,) = scored([self._start])
        for level in range(self._top):
            before = None
            while before != nearest:
                before = nearest
                links = _used(self._levels[self._starts[nearest[1]] + self._top - 1 - level])
                nearest = min([nearest, *scored(links)]) if links else nearest
        return nearest


def _is_wanted(node: tuple[float, int], found: list[tuple[float, int]], effort: int) -> bool:
    return len(found) < effort or (-node[0], -node[1]) > found[0]


def _used(links: np.ndarray) -> list[int]:
    end = np.flatnonzero(links == NO_NODE)
    return links[: end[0] if len(end) else len(links)].tolist()
