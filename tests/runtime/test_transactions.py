"""Transactions: what is durable together, who sees what of it, and who may write at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from m3edge import CancelledError, Document, Index, IndexLockedError, ModelMismatchError
from m3edge.embeddings import offsets_of

QUERY = {"query": 0}


def found(index, made, k=100):
    return {hit.id: hit.text for hit in index.search(made.embeddings_of(QUERY), k=k)}


def add(index, made, **versions):
    index.add(made.documents_of(versions), embeddings=made.embeddings_of(versions))


def test_calls_in_a_transaction_become_visible_together_at_its_end(made_index, made):
    before = found(made_index, made)
    with Index.open(made_index.folder) as other:
        with made_index.transaction():
            add(made_index, made, new=1)
            assert made_index.delete(["d0", "d1"]) == 2
            made_index.set_note("step", 1)
            assert found(made_index, made) == before  # searches see what is committed
            assert "new" in made_index  # the transaction's own thread sees its work
            assert "d0" not in made_index
            assert (len(made_index), made_index.note("step")) == (19, 1)
            other.refresh()
            assert "new" not in other
            assert (len(other), found(other, made)) == (20, before)
        other.refresh()
        for index in (made_index, other):
            assert set(found(index, made)) == set(before) - {"d0", "d1"} | {"new"}
            assert index.note("step") == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_transaction_that_raises_never_happened(made_index, made, error):
    before = found(made_index, made)

    def work():
        with made_index.transaction():
            add(made_index, made, new=1)
            made_index.delete("d0")
            raise error

    with pytest.raises(error):
        work()
    assert found(made_index, made) == before
    assert "d0" in made_index
    add(made_index, made, new=2)
    assert made_index.get("new").text == "new in version 2"
    assert made_index.check().sound


def test_a_call_that_fails_inside_a_transaction_is_undone_alone(made_index, made):
    many = {f"m{i}": 0 for i in range(300)}  # more than one block: the first is already written
    with made_index.transaction():
        add(made_index, made, first=1)
        with pytest.raises(ValueError, match="id 'd0' is already in the index; use upsert"):
            add(made_index, made, **many, d0=1)
        add(made_index, made, second=1)
    assert len(made_index) == 22
    assert {"first", "second"} <= set(found(made_index, made))
    assert made_index.check().sound


def test_nothing_is_committed_after_a_failure_that_undid_the_whole_transaction(made_index, made):
    """As SQLite does by itself on a full disk, even when the caller goes on."""
    before = found(made_index, made)

    def work():
        with made_index.transaction():
            add(made_index, made, new=1)
            made_index._writing.transaction._connection.execute("ROLLBACK")
            with pytest.raises(OSError, match="undid the whole transaction"):
                made_index.delete("d0")

    with pytest.raises(OSError, match="undid the whole transaction"):
        work()
    made_index.refresh()
    assert found(made_index, made) == before
    assert made_index.check().sound


def test_an_id_may_come_again_in_the_next_call_but_not_in_the_same(made_index, made):
    with made_index.transaction():
        add(made_index, made, a=1)
        made_index.upsert(made.documents_of({"a": 2}), embeddings=made.embeddings_of({"a": 2}))
    assert made_index.get("a").metadata == {"version": 2}
    twice = [Document("b", "x"), *made.documents_of({f"m{i}": 0 for i in range(300)}), Document("b", "y")]
    versions = {str(i): 0 for i in range(len(twice))}
    with pytest.raises(ValueError, match="id 'b' came twice in one call"):
        made_index.upsert(twice, embeddings=made.embeddings_of(versions))


def test_transactions_do_not_nest(made_index):
    with made_index.transaction():
        for call in (made_index.close, made_index.compact, lambda: made_index.transaction().__enter__()):
            with pytest.raises(ValueError, match="end the transaction that is open in this thread first"):
                call()
    made_index.delete("d0")
    assert len(made_index) == 19


def test_another_thread_waits_for_its_turn(made_index, made):
    with made_index.transaction():
        add(made_index, made, a=1)
        thread = threading.Thread(target=add, args=(made_index, made), kwargs={"b": 1})
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert "b" not in made_index
    thread.join()
    assert {"a", "b"} <= set(found(made_index, made))


def test_a_second_writing_process_is_told_who_writes_and_takes_over_when_that_one_dies(made_index, made):
    code = (
        "import sys, m3edge\n"
        "index = m3edge.Index.open(sys.argv[1])\n"
        "with index.transaction():\n"
        "    index.delete('d0')\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(made_index.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with pytest.raises(IndexLockedError, match=f"process {writer.pid} is writing to this index"):
            made_index.delete("d1")
        assert len(found(made_index, made)) == 20  # searching goes on
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert made_index.delete("d1") == 1
        assert "d0" in made_index


def test_a_second_index_in_the_same_process_is_refused_too(made_index):
    with (
        Index.open(made_index.folder) as other,
        made_index.transaction(),
        pytest.raises(IndexLockedError, match=rf"another Index object of this process \({os.getpid()}\) is writing"),
    ):
        other.delete("d1")


def test_a_cancelled_add_adds_nothing(made_index, made):
    cancel = threading.Event()
    cancel.set()
    versions = {f"s{i}": 0 for i in range(600)}
    documents = made.documents_of(versions)
    with pytest.raises(CancelledError, match="none of them was added"):
        made_index.add(iter(documents), embeddings=made.embeddings_of(versions), cancel=cancel)
    assert len(made_index) == 20


def test_given_embeddings_are_found_like_those_the_encoder_makes(index, encoder):
    documents = [Document("gzip", "The gzip module compresses files."), Document("tea", "Green tea.")]
    index.add(documents)
    expected = index.search("how do I compress a file")
    embeddings = encoder.encode_passages([document.text for document in documents])
    index.upsert(documents, embeddings=embeddings)
    assert index.search("how do I compress a file") == expected


def test_without_an_encoder_documents_need_their_embeddings(made_index):
    with (
        Index.open(made_index.folder) as index,
        pytest.raises(ValueError, match="give their embeddings or open the index with its encoder"),
    ):
        index.add([Document("a", "b")])


def wrong_embeddings(made):
    good = made.embeddings_of({"a": 0, "b": 0})
    sparse, tokens = good.sparse, good.tokens
    nan = tokens.vectors.copy()
    nan[0, 0] = np.nan
    yield replace(good, tokens=None), ValueError, "got none of tokens"
    yield replace(good, dense=good.dense[:, :8]), ModelMismatchError, "dense vectors must be 16 wide"
    yield replace(good, dense=good.dense[:1]), ValueError, "dense part must have 2 rows, got 1"
    yield replace(good, dense=good.dense.astype(float) * 1e300), ValueError, "must have length 1, got inf in row 0"
    yield replace(good, dense=good.dense * 100), ValueError, "dense vectors must have length 1, got 100 in row 0"
    yield replace(good, dense=good.dense * 0), ValueError, "dense vectors must have length 1, got 0 in row 0"
    yield replace(good, dense=good.dense * 1j), TypeError, "dense vectors must be real numbers, got complex"
    yield replace(good, tokens=tokens._replace(vectors=nan)), ValueError, "tokens vectors must have length 1, got nan"
    yield replace(good, tokens=tokens._replace(offsets=offsets_of([1, 1]))), ValueError, "tokens offsets must ascend"
    yield replace(good, sparse=sparse._replace(offsets=sparse.offsets[:2])), ValueError, "sparse offsets must be 3"
    yield replace(good, sparse=sparse._replace(offsets=sparse.offsets * 1.0)), ValueError, "offsets must be 3 integers"
    yield replace(good, sparse=sparse._replace(weights=-sparse.weights)), ValueError, "weights must be finite and at"
    yield replace(good, sparse=sparse._replace(weights=sparse.weights * np.nan)), ValueError, "weights must be finite"
    yield replace(good, sparse=sparse._replace(ids=sparse.ids[::-1])), ValueError, "ascend within a row"
    yield replace(good, sparse=sparse._replace(ids=sparse.ids + 2**32)), ValueError, "ids must be from 0 to 2147483647"
    yield replace(good, sparse=sparse._replace(counts=-sparse.counts)), ValueError, "counts must be from 1 to"
    yield replace(good, sparse=sparse._replace(counts=sparse.counts[:3])), ValueError, "as many ids as weights"


def test_embeddings_that_no_model_gives_are_refused_as_documents_and_as_queries(made_index, made):
    documents = made.documents_of({"a": 0, "b": 0})
    for embeddings, error, message in wrong_embeddings(made):
        with pytest.raises(error, match=message):
            made_index.add(documents, embeddings=embeddings)
        with pytest.raises(error, match=message):
            made_index.search_batch(embeddings)
    assert len(made_index) == 20


def test_embeddings_that_are_not_the_documents_are_refused(made_index, made):
    documents = made.documents_of({"a": 0, "b": 0})
    good = made.embeddings_of({"a": 0, "b": 0})
    with pytest.raises(TypeError, match="embeddings must be Embeddings, got type"):
        made_index.add(documents, embeddings=type(None))
    with pytest.raises(ValueError, match="of the 2 documents, got 1"):
        made_index.add(documents, embeddings=good[:1])
    assert len(made_index) == 20
