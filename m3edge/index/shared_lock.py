"""A lock for threads: many hold it shared, or one holds it exclusively."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class _Turn:
    """A thread that holds the lock, or waits for it at its gate."""

    def __init__(self, *, exclusive: bool) -> None:
        self.exclusive = exclusive
        self.thread = threading.get_ident()
        self.gate = threading.Lock()
        self.gate.acquire()


class SharedLock:
    """First come, first served: neither do searches without a pause keep a writer waiting for ever, nor does a writer
    that asks for it again and again go before the searches that wait. Not reentrant.

    Ctrl-C raises KeyboardInterrupt between any two calls of the main thread, within a `finally`, too. So who holds the
    lock and who waits for it is one list, and whatever is done to it can be done twice.
    """

    def __init__(self) -> None:
        self._line: list[_Turn] = []  # as they came; the first, and all behind it that share it with it, hold the lock
        self._changing = threading.Lock()  # for a change of the line; written in C, its `with` is never interrupted

    def shared(self) -> AbstractContextManager[None]:
        return self._held(exclusive=False)

    def exclusive(self) -> AbstractContextManager[None]:
        return self._held(exclusive=True)

    @contextmanager
    def _held(self, *, exclusive: bool) -> Iterator[None]:
        turn = _Turn(exclusive=exclusive)
        try:
            with self._changing:
                if exclusive:
                    # This thread would wait for itself: an interrupt between two steps of a caller's `with` left its
                    # turn here, for as long as somebody keeps the traceback.
                    self._line = [other for other in self._line if other.thread != turn.thread]
                self._line.append(turn)
                self._open_gates()
            turn.gate.acquire()
            yield
        finally:
            try:
                self._leave(turn)
            except BaseException:  # an interrupt, before or within it
                self._leave(turn)
                raise

    def _leave(self, turn: _Turn) -> None:
        with self._changing:
            if turn in self._line:
                self._line.remove(turn)
            self._open_gates()

    def _open_gates(self) -> None:
        for place, turn in enumerate(self._line):
            if turn.exclusive and place > 0:
                return
            if turn.gate.locked():  # whoever came in has closed it behind them, and does not mind that it opens again
                turn.gate.release()
            if turn.exclusive:
                return
