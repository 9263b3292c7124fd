"""A process whose commit fails because syncs do, and which is killed soon afterwards.

Its arguments: the index's folder, and what it commits: "compact", where syncs go on failing; "add", where they work
again, and another add writes its token vectors before the kill. Needs failing_writes.c preloaded.
"""

from __future__ import annotations

import ctypes
import os
import sys

import writer_process as made

from m3edge import Index
from m3edge.index.transaction import Transaction

shim = ctypes.CDLL(None)
commit = Transaction.commit


def failing_commit(transaction: Transaction) -> None:
    Transaction.commit = commit
    shim.fail_syncs(1)
    try:
        commit(transaction)
    finally:
        shim.fail_syncs(work == "compact")


def add(index: Index, name: str, version: int) -> None:
    index.add(made.documents_of({name: version}), embeddings=made.embeddings_of({name: version}))


def killed(_: Transaction) -> None:
    os._exit(0)


folder, work = sys.argv[1:]
index = Index.open(folder)
index.delete("d0")  # makes a log: a new one's beginning is synced before the commit is written
Transaction.commit = failing_commit
try:
    index.compact() if work == "compact" else add(index, "first", 1)
except OSError:
    pass
else:
    sys.exit("the commit did not fail")
if work == "add":
    with index.transaction():
        add(index, "second", 2)
        Transaction.commit = killed
os._exit(0)
