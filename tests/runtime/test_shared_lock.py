"""The locks: who goes first among searches and what changes them, and that Ctrl-C at any step leaves nobody waiting."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from filelock import FileLock

from m3edge.index.shared_lock import SharedLock
from m3edge.index.writer_lock import writer_lock

KINDS = ["shared", "exclusive"]


def wait_for_line(lock, length):
    end = time.monotonic() + 60
    while len(lock._line) < length:
        assert time.monotonic() < end, "nobody came"
        time.sleep(0.001)


def is_done(function):
    """Whether a thread of its own comes to the end of it."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


def take(lock, kind):
    with getattr(lock, kind)():
        pass


class InterruptAt:
    """Raises KeyboardInterrupt where Python would: as a function begins, or as one written in C has returned."""

    def __init__(self, step):
        self.steps_left = step

    def __call__(self, frame, event, argument):
        if event in ("call", "c_return"):
            self.steps_left -= 1
            if self.steps_left == 0:
                raise KeyboardInterrupt  # which ends the profiling, too


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_at_any_step_leaves_the_lock_free(kind):
    step, interrupted = 0, True
    while interrupted:
        step += 1
        lock = SharedLock()
        interrupt = InterruptAt(step)
        try:
            sys.setprofile(interrupt)
            take(lock, kind)
            sys.setprofile(None)
        except KeyboardInterrupt:
            pass
        interrupted = interrupt.steps_left <= 0
        for other in KINDS:
            assert is_done(lambda lock=lock, other=other: take(lock, other)), f"held after an interrupt at step {step}"
    assert step > 10


def test_a_thread_does_not_wait_for_a_turn_that_an_interrupt_left_to_it():
    lock = SharedLock()
    left = []

    def work():
        left.append(lock.shared())
        left[0].__enter__()  # and its end never comes: the traceback keeps it
        take(lock, "exclusive")

    assert is_done(work)
    assert is_done(lambda: take(lock, "exclusive"))
    left.clear()
    assert is_done(lambda: take(lock, "exclusive"))


def test_who_asks_again_and_again_goes_behind_those_who_wait():
    lock = SharedLock()
    order = []

    def search():
        with lock.shared():
            order.append("search")

    threads = [threading.Thread(target=search) for _ in range(2)]
    with lock.exclusive():
        for thread in threads:
            thread.start()
        wait_for_line(lock, 3)
    with lock.exclusive():
        order.append("writer")
    for thread in threads:
        thread.join()
    assert order == ["search", "search", "writer"]


def test_searches_without_a_pause_do_not_keep_a_writer_waiting():
    lock = SharedLock()
    order = []

    def come(kind):
        with getattr(lock, kind)():
            order.append(kind)

    threads = [threading.Thread(target=come, args=(kind,)) for kind in ("exclusive", "shared")]
    with lock.shared():
        for n_before, thread in enumerate(threads, start=1):
            thread.start()
            wait_for_line(lock, n_before + 1)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["exclusive", "shared"]


def test_many_share_it_at_once():
    lock = SharedLock()
    together = threading.Barrier(3, timeout=20)

    def work():
        with lock.shared():
            together.wait()

    with lock.shared():
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        together.wait()
    for thread in threads:
        thread.join()
    assert lock._line == []


def test_an_interrupted_release_does_not_lock_this_process_out(tmp_path, monkeypatch):
    def interrupted(self, force=False):
        monkeypatch.undo()
        raise KeyboardInterrupt

    def write():
        with writer_lock(tmp_path):
            pass

    monkeypatch.setattr(FileLock, "release", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:  # whose traceback keeps the lock's object
        write()
    write()
    assert caught.value
