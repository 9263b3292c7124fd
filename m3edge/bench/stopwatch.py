"""Where the time of a search goes: the real `Index.search`, with a clock on the calls it makes.

Nothing is computed a second way, so the parts always belong to the search that users run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from m3edge import kernels
from m3edge._hybrid_numpy import HybridScores
from m3edge.index import Index

PARTS = ("tokenise", "encode", "dense", "sparse", "MaxSim", "fuse")


class SearchClock:
    """Milliseconds of each of PARTS, for one search after another of one index; for one thread.

    "encode" is everything the encoder does but tokenising; "dense" finding the nearest and scoring the others; "fuse"
    what is left: joining the candidates, the weighted sum, sorting, and reading the hits' texts. In the kernel that
    does most of a search the parts run side by side: each is given the share of its time that the threads spent on it.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._spent: dict[str, float] = defaultdict(float)

    def search(self, query: str, k: int = 10, **options: Any) -> tuple[list[Any], dict[str, float]]:
        """What `index.search` returns, and the milliseconds by part with "total"."""
        index, encoder = self._index, self._index.encoder
        assert encoder is not None
        self._spent.clear()
        with index.view.reading() as current:
            state = current.state
        with ExitStack() as stack:
            for owner, name, part in (
                (encoder.tokenizer, "tokenize", "tokenise"),
                (encoder, "encode_queries", "encoder"),
                (state.dense, "search", "dense"),
                (state.postings, "query", "sparse"),
            ):
                stack.enter_context(self._timed(owner, name, part))
            stack.enter_context(self._timed_kernel())
            started = time.perf_counter()
            hits = index.search(query, k, **options)
            total = time.perf_counter() - started
        spent = dict(self._spent)
        spent["encode"] = spent.pop("encoder", 0.0) - spent.get("tokenise", 0.0)
        spent["fuse"] = total - sum(spent.values())
        return hits, {**{part: 1000 * spent.get(part, 0.0) for part in PARTS}, "total": 1000 * total}

    @contextmanager
    def _timed(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """While it lasts, calls of this one object's method are counted to `part`."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self._spent[part] += time.perf_counter() - started

        setattr(owner, name, timed)
        try:
            yield
        finally:
            delattr(owner, name)

    @contextmanager
    def _timed_kernel(self) -> Iterator[None]:
        """The same for the kernel of hybrid searches, which tells how long its threads took for which part."""
        kernel = kernels.hybrid_scores

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            found = kernel(*arguments)
            elapsed = time.perf_counter() - started
            seconds = [0.0, 0.0, 0.0] if found is None else HybridScores(*found).seconds
            for part, share in zip(("dense", "sparse", "MaxSim"), seconds, strict=True):
                self._spent[part] += elapsed * share / max(sum(seconds), 1e-9)
            return found

        kernels.hybrid_scores = timed
        try:
            yield
        finally:
            kernels.hybrid_scores = kernel
