"""Exact sparse top-k over synthetic postings: the native kernel with each lexical score, its numpy twin, and what one
writes in numpy without further thought, on one thread, and the kernel on two; time, memory, and whether the results are
exact.

    python benchmarks/postings.py --documents 500000
    python benchmarks/postings.py --documents 5000000

The tokens of documents and queries follow Zipf's law over BGE-M3's vocabulary: rank r has probability ~ 1 / (r + 3.5).
`--weights m3` (the default) gives weights as the mini model does on xquad-zh, arcd-ar and piaf-fr: .2 for rare tokens,
falling to .06 for one that half of the documents hold. `--weights even` draws them without regard to frequency, which
is harder: nothing says early which tokens hardly matter. The postings are made once and kept in build/postings, 13
bytes each; other engines search the same ones in peers/run.py. Writes results/postings-DOCUMENTS-WEIGHTS.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flat_postings import FlatPostings, K, query_times
from machine import RESULTS, ROOT, describe_machine

from m3edge import _kernels_numpy, kernels
from m3edge.embeddings import SparseRows, offsets_of
from m3edge.files import write_atomically
from m3edge.index import sparse
from m3edge.index.sparse import LEXICAL, PostingIndex

VOCABULARY = 250_002
DRAWS = 81  # with repeats; about 75 distinct tokens a document
BLOCK = 65_536
QUERIES = 200
SLOW = 40  # queries of what takes long

Search = Callable[[SparseRows], np.ndarray]  # a query's K best positions


class Corpus(NamedTuple):
    """token_means: float64 [VOCABULARY], the mean weight of each token"""

    probabilities: np.ndarray
    token_means: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--weights", choices=("m3", "even"), default="m3")
    parser.add_argument("--prepare", action="store_true", help="make the postings, measure nothing")
    parser.add_argument("--out", type=Path, help="default: results/postings-DOCUMENTS-WEIGHTS.json")
    options = parser.parse_args()
    folder = prepare(options.documents, options.weights)
    if options.prepare:
        return
    index, flat, queries = load_index(folder), FlatPostings(folder), load_queries(folder)
    rows = [
        measure("m3edge", queries, native_search(index), flat, index.size_bytes / index.n_postings),
        *(measure(f"m3edge {kind}", queries, native_search(index, kind), None, None) for kind in LEXICAL[1:]),
        *(
            measure(f"m3edge {kind}, 2 threads", queries, native_search(index, kind, n_threads=2), None, None)
            for kind in LEXICAL
        ),
        measure("numpy accumulation", queries[:SLOW], flat.search, flat, flat.size_bytes / index.n_postings),
    ]
    if options.documents <= 1_000_000:  # beyond, a query takes the twin seconds
        with twin_kernels(index):
            rows.append(measure("m3edge, numpy twin", queries[:SLOW], native_search(index), flat, None))
    report = {
        "documents": options.documents,
        "postings": index.n_postings,
        "postings_a_query_median": int(np.median([flat.postings_of(query) for query in queries])),
        "weights": options.weights,
        "k": K,
        "kernels": kernels.DESCRIPTION,
        "machine": describe_machine(),
        "rows": rows,
    }
    out = options.out or RESULTS / f"postings-{options.documents}-{options.weights}.json"
    write_atomically(out, json.dumps(report, indent=1).encode() + b"\n")
    print(table(report))


# Documents and queries


def prepare(n_documents: int, weights: str) -> Path:
    """The folder with the postings by token, our index of them, and the queries; made once."""
    folder = ROOT / "build" / "postings" / f"{n_documents}-{weights}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    corpus = make_corpus(weights == "even")
    index, sizes = PostingIndex(), np.zeros(VOCABULARY, np.int64)
    for rows in document_blocks(corpus, n_documents):
        index.add(rows)
        sizes += np.bincount(rows.ids, minlength=VOCABULARY)
    np.savez(folder / "index.npz", **index.to_arrays())
    del index
    starts = offsets_of(sizes)
    np.save(folder / "starts.npy", starts)
    shape = (int(starts[-1]),)
    documents = np.lib.format.open_memmap(folder / "documents.npy", "w+", np.int32, shape)
    flat_weights = np.lib.format.open_memmap(folder / "weights.npy", "w+", np.float32, shape)
    free, first = starts[:-1].copy(), 0
    for rows in document_blocks(corpus, n_documents):
        lengths = np.diff(rows.offsets)
        order = np.argsort(rows.ids, kind="stable")
        sizes = np.bincount(rows.ids, minlength=VOCABULARY)
        at = np.arange(len(order)) + np.repeat(free - offsets_of(sizes)[:-1], sizes)
        documents[at] = np.repeat(np.arange(first, first + len(lengths), dtype=np.int32), lengths)[order]
        flat_weights[at] = rows.weights[order]
        free += sizes
        first += len(lengths)
    rng = np.random.default_rng(1)
    queries = [make_query(rng, corpus) for _ in range(QUERIES)]
    np.savez(
        folder / "queries.npz",
        ids=np.concatenate([query.ids for query in queries]),
        weights=np.concatenate([query.weights for query in queries]),
        counts=np.concatenate([query.counts for query in queries]),
        offsets=offsets_of([len(query.ids) for query in queries]),
    )
    (folder / "done").touch()
    print(f"{folder}: made in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return folder


def load_index(folder: Path) -> PostingIndex:
    return PostingIndex.from_arrays(np.load(folder / "index.npz"))


def load_queries(folder: Path) -> list[SparseRows]:
    arrays = np.load(folder / "queries.npz")
    ids, weights, counts, offsets = (arrays[name] for name in ("ids", "weights", "counts", "offsets"))
    rows = [slice(*offsets[i : i + 2]) for i in range(len(offsets) - 1)]
    return [SparseRows(ids[row], weights[row], counts[row], offsets_of([row.stop - row.start])) for row in rows]


def make_corpus(even: bool) -> Corpus:
    probabilities = 1 / (np.arange(VOCABULARY) + 3.5)
    probabilities /= probabilities.sum()
    share = 1 - (1 - probabilities) ** DRAWS  # of the documents that hold the token
    means = np.full(VOCABULARY, 0.2) if even else 0.2 - 0.14 * np.minimum(1, np.sqrt(2 * share))
    return Corpus(probabilities, means)


def document_blocks(corpus: Corpus, n_documents: int) -> Iterator[SparseRows]:
    """The same documents at every call."""
    cumulative = np.cumsum(corpus.probabilities)
    for start in range(0, n_documents, BLOCK):
        rng = np.random.default_rng([0, start])
        n = min(BLOCK, n_documents - start)
        drawn = np.searchsorted(cumulative, rng.random((n, DRAWS))).clip(0, VOCABULARY - 1)
        keys, counts = np.unique(np.arange(n)[:, None] * VOCABULARY + drawn, return_counts=True)
        ids = keys % VOCABULARY
        lengths = np.bincount(keys // VOCABULARY, minlength=n)
        yield SparseRows(ids, _weights(rng, corpus, ids), counts.astype(np.int32), offsets_of(lengths))


def make_query(rng: np.random.Generator, corpus: Corpus) -> SparseRows:
    drawn = rng.choice(VOCABULARY, rng.integers(4, 14), p=corpus.probabilities)
    ids, counts = np.unique(drawn, return_counts=True)
    return SparseRows(ids, _weights(rng, corpus, ids), counts.astype(np.int32), offsets_of([len(ids)]))


def _weights(rng: np.random.Generator, corpus: Corpus, ids: np.ndarray) -> np.ndarray:
    return np.minimum(rng.gamma(6, corpus.token_means[ids] / 6), 0.999).astype(np.float32)


# What is compared


def native_search(index: PostingIndex, lexical: str = "m3", n_threads: int = 1) -> Search:
    return lambda query: index.top(index.query(query, lexical), K, n_threads=n_threads).positions


class twin_kernels:
    """Within it, the index's searches run on the numpy twins."""

    def __init__(self, index: PostingIndex) -> None:
        self._index, self._kept = index, (sparse.kernels, index._kernel_blocks)

    def __enter__(self) -> None:
        sparse.kernels = _kernels_numpy
        self._index._kernel_blocks = [_kernels_numpy.PostingBlock(*block) for block in self._index._blocks]

    def __exit__(self, *_: object) -> None:
        sparse.kernels, self._index._kernel_blocks = self._kept


# Measuring


def measure(
    name: str, queries: list[SparseRows], search: Search, judge: FlatPostings | None, bytes_a_posting: float | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, **query_times(search, queries)}
    if judge is not None:
        row["lost"] = max(_lost(judge.scores(query), search(query)) for query in queries[:20])
    if bytes_a_posting is not None:
        row["bytes_a_posting"] = round(bytes_a_posting, 2)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _lost(scores: np.ndarray, found: np.ndarray) -> float:
    """By how much the K-th best float32 score is above the least found one: 0 for an exact result."""
    return max(0.0, float(np.sort(scores)[-len(found)] - scores[found].min()))


def table(report: dict[str, Any]) -> str:
    lines = ["| | median ms | p99 ms | times m3edge | bytes a posting |", "|---|--:|--:|--:|--:|"]
    own = report["rows"][0]["median_ms"]
    for row in report["rows"]:
        size = row.get("bytes_a_posting", "")
        lines.append(
            f"| {row['name']} | {row['median_ms']} | {row['p99_ms']} | {row['median_ms'] / own:.1f} | {size} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
