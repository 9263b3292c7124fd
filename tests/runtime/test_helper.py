"""The thread that does one of two things: its caller never waits for it in vain, and it never runs on alone."""

import threading
import time

import pytest

from m3edge.index.helper import Helper
from m3edge.index.ranking import rank


@pytest.fixture
def helper():
    helper = Helper()
    yield helper
    helper.close()


def test_two_things_are_done_side_by_side(helper):
    meeting = threading.Barrier(2, timeout=10)  # which one thread alone could not pass

    def meet(result):
        meeting.wait()
        return result, threading.current_thread()

    (aside, other), (here, own) = helper.both(lambda: meet("aside"), lambda: meet("here"))
    assert (aside, here) == ("aside", "here")
    assert own is threading.current_thread() is not other


def test_what_the_helper_has_no_time_for_its_caller_does(helper):
    release = threading.Event()
    busy = threading.Thread(target=helper.both, args=(release.wait, release.wait))
    busy.start()
    caller = threading.current_thread()
    assert helper.both(threading.current_thread, threading.current_thread) == (caller, caller)
    release.set()
    busy.join()


@pytest.mark.parametrize("fails", ["aside", "here"])
def test_an_error_of_either_is_raised_when_the_other_has_ended(helper, fails):
    ended = []

    def work(name):
        if name == fails:
            raise OSError(name)
        time.sleep(0.05)
        ended.append(name)

    begun = threading.Event()

    def aside():
        begun.set()
        work("aside")

    def here():
        begun.wait(10)  # it is under way, and can no longer be called off
        work("here")

    with pytest.raises(OSError, match=fails):
        helper.both(aside, here)
    assert ended == [{"aside": "here", "here": "aside"}[fails]]


def test_a_closed_one_leaves_all_to_its_caller():
    helper = Helper()
    helper.close()
    assert helper.both(lambda: 1, lambda: 2) == (1, 2)


def test_a_search_finds_the_same_with_a_helper_and_without(made_index, made, monkeypatch):
    query = made.embeddings_of({"query": 0})
    with_helper = made_index.search(query, k=20)

    def without(*arguments):
        return rank(*arguments[:-1], None)

    monkeypatch.setattr("m3edge.index.searching.rank", without)
    assert made_index.search(query, k=20) == with_helper


def test_searches_of_many_threads_find_what_one_finds(made_index, made):
    queries = [made.embeddings_of({f"query {i}": 0}) for i in range(8)]
    expected = [made_index.search(query, k=20) for query in queries]
    found = [[] for _ in queries]

    def search(i):
        for _ in range(20):
            found[i].append(made_index.search(queries[i], k=20))

    threads = [threading.Thread(target=search, args=(i,)) for i in range(len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each == expected[i] for i in range(len(queries)) for each in found[i])
