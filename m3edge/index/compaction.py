"""Compaction: the room of deleted documents comes back. The one thing that changes where committed data lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from m3edge.embeddings import offsets_of
from m3edge.errors import FormatError
from m3edge.index.check import unsound_tokens
from m3edge.index.store import Store
from m3edge.index.tokens import crc32s_of
from m3edge.index.writing import open_tokens, settle
from m3edge.progress import progress_bar

_BLOCK_ROWS = 256


class CompactReport(NamedTuple):
    """The index folder's size before and after. Readers of older snapshots keep what they read until they refresh."""

    bytes_before: int
    bytes_after: int


def begin_epoch(store: Store, *, progress: bool | None) -> None:
    """Copy the live documents' token vectors to the next epoch's file and, in one commit, turn to it.

    The caller holds the writer's lock and removes what is left over, whether this went well or not.
    Raises FormatError when token vectors to be kept are damaged.
    """
    folder = store.path.parent
    settle(store)
    with store.transaction() as transaction:
        source = open_tokens(folder, transaction)
        source.map_rows(transaction.token_rows)
        places = transaction.places()
        if len(unsound := unsound_tokens(transaction, source, places)):
            raise FormatError(
                f"{source.path}: token vectors of {len(unsound)} documents are damaged; "
                f"`m3edge check --repair {folder}` encodes them again"
            )
        transaction.begin_epoch()
        target = open_tokens(folder, transaction)
        end = 0
        with progress_bar(len(places), "document", "compacting", progress) as bar:
            for first in range(0, len(places), _BLOCK_ROWS):
                rows, starts, counts, _ = places[first : first + _BLOCK_ROWS].T
                offsets = offsets_of(counts)
                data = np.concatenate(
                    [source.rows(*place) for place in zip(starts.tolist(), counts.tolist(), strict=True)]
                )
                target.write_rows(end, data)
                transaction.move_tokens(rows, end + offsets[:-1], crc32s_of(data, offsets))
                end += len(data)
                bar.update(len(rows))
        transaction.set_token_rows(end)
        target.sync()
