"""A process whose writes fail from a given one on: takes lines "FOLDER N ONCE" and forks, for each, a child that works.

Needs failing_writes.c preloaded. It answers with how the child ended and how many calls that write it made: "done" when
nothing failed it, "refused" when it got an OSError, and anything else is an error of ours.
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
import warnings

import writer_process as made

from m3edge import Index

NEW, CHANGED, GONE = {"d30": 1, "d31": 1}, {"d0": 1, "d30": 2}, ["d1", "d2", "d31"]


def work(folder: str) -> None:
    """A transaction of several steps, single calls, a compaction, and what closing saves."""
    with Index.open(folder) as index:
        with index.transaction():
            index.add(made.documents_of(NEW), embeddings=made.embeddings_of(NEW))
            index.delete(GONE)
        index.upsert(made.documents_of(CHANGED), embeddings=made.embeddings_of(CHANGED))
        index.compact()
        index.delete("d3")


def contents(before: dict[str, int]) -> list[dict[str, int]]:
    """What may be there after `work`, wherever it was stopped."""
    first = {id_: version for id_, version in {**before, **NEW}.items() if id_ not in GONE}
    second = {**first, **CHANGED}
    third = {id_: version for id_, version in second.items() if id_ != "d3"}
    return [before, first, second, third]


if __name__ == "__main__":
    import filelock  # noqa: F401  # all imports are done before the first fork
    import hnswlib  # noqa: F401

    shim = ctypes.CDLL(None)
    warnings.simplefilter("ignore", RuntimeWarning)  # derived files not saved
    for line in sys.stdin:
        folder, first, once = line.rstrip("\n").split("\t")
        reading, writing = os.pipe()
        if not os.fork():
            outcome = "done"
            try:
                shim.fail_from(int(first), int(once))
                work(folder)
            except OSError as error:
                outcome = "refused" if folder in str(error) else f"an error that names no file of the index: {error}"
            except BaseException:
                outcome = traceback.format_exc().replace("\n", " | ")
            calls = shim.calls_made()
            shim.fail_from(0, 0)
            os.write(writing, f"{calls}\t{outcome}".encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            print(answer.read(), flush=True)
        os.wait()
