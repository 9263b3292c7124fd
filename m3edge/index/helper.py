"""A thread that does one of two things while the caller does the other, for what keeps one core busy each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Helper:
    """Used by any number of threads at once: what it has no time for, its caller does alone."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "m3edge-helper")  # which starts with the first work

    def both(self, aside: Callable[[], A], here: Callable[[], B]) -> tuple[A, B]:
        """The results of both; `here` runs in the caller's thread. Neither still runs when this returns or raises."""
        try:
            future: Future[A] = self._thread.submit(aside)
        except RuntimeError:  # closed, no thread to be had, or Python is ending
            return aside(), here()
        try:
            own = here()
        except BaseException:
            if not future.cancel():
                wait([future])
            raise
        return (aside() if future.cancel() else future.result()), own

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False)
