"""Exact sparse top-k over synthetic postings: the native kernel, its numpy twin, plain numpy accumulation, and, where
installed, bm25s, tantivy and scipy, on the same documents and queries in one run, one thread each.

    pip install bm25s tantivy scipy    # only to compare
    python benchmarks/postings.py --documents 500000

The tokens of documents and queries follow Zipf's law over BGE-M3's vocabulary: rank r has probability ~ 1 / (r + 3.5).
`--weights m3` (the default) gives weights as the mini model does on xquad-zh, arcd-ar and piaf-fr: .2 for rare tokens,
falling to .06 for one that half of the documents hold. `--weights even` draws them without regard to frequency, which
is harder: nothing says early which tokens hardly matter. Writes benchmarks/results/postings-DOCUMENTS-WEIGHTS.json.
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
from machine import describe_machine

from m3edge import _kernels_numpy, kernels
from m3edge.embeddings import SparseRows, offsets_of
from m3edge.files import write_atomically
from m3edge.index import sparse
from m3edge.index.sparse import PostingIndex

RESULTS = Path(__file__).parent / "results"
VOCABULARY = 250_002
DRAWS = 81  # with repeats; about 75 distinct tokens a document
BLOCK = 20_000
K = 100

Search = Callable[[SparseRows], np.ndarray]  # a query's K best positions


class Corpus(NamedTuple):
    """token_means: float64 [VOCABULARY], the mean weight of each token"""

    probabilities: np.ndarray
    token_means: np.ndarray
    even: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--weights", choices=("m3", "even"), default="m3")
    parser.add_argument("--peers", default="bm25s,tantivy,scipy", help="of bm25s, tantivy, scipy; default: %(default)s")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    corpus = make_corpus(options.weights == "even")
    index, flat = PostingIndex(), FlatPostings()
    started = time.perf_counter()
    for rows in document_blocks(rng, corpus, options.documents):
        index.add(rows)
        flat.add(rows)
    flat.finish()
    print(f"built in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    queries = [make_query(rng, corpus) for _ in range(options.queries)]

    rows_ = [measure("m3edge", queries, native_search(index), flat, index.size_bytes / index.n_postings)]
    for lexical in ("m3-idf", "bm25"):
        rows_.append(measure(f"m3edge {lexical}", queries, native_search(index, lexical), None, None))
    rows_.append(measure("numpy accumulation", queries, flat.search, flat, flat.size_bytes / index.n_postings))
    with twin_kernels(index):
        rows_.append(measure("m3edge, numpy twin", queries[:50], native_search(index), flat, None))
    for name in filter(None, options.peers.split(",")):
        search = {"bm25s": bm25s_search, "tantivy": tantivy_search, "scipy": scipy_search}[name](flat)
        if search is None:
            print(f"{name} is not installed", file=sys.stderr)
        else:
            rows_.append(measure(name, queries, search, None, None))
    report = {
        "documents": options.documents,
        "postings": index.n_postings,
        "postings_a_query_median": int(np.median([flat.postings_of(query) for query in queries])),
        "weights": options.weights,
        "k": K,
        "kernels": kernels.DESCRIPTION,
        "machine": describe_machine(),
        "rows": rows_,
    }
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"postings-{options.documents}-{options.weights}.json"
    write_atomically(out, json.dumps(report, indent=1).encode() + b"\n")
    print(table(report))


# Documents and queries


def make_corpus(even: bool) -> Corpus:
    probabilities = 1 / (np.arange(VOCABULARY) + 3.5)
    probabilities /= probabilities.sum()
    share = 1 - (1 - probabilities) ** DRAWS  # of the documents that hold the token
    means = np.full(VOCABULARY, 0.2) if even else 0.2 - 0.14 * np.minimum(1, np.sqrt(2 * share))
    return Corpus(probabilities, means, even)


def document_blocks(rng: np.random.Generator, corpus: Corpus, n_documents: int) -> Iterator[SparseRows]:
    cumulative = np.cumsum(corpus.probabilities)
    for start in range(0, n_documents, BLOCK):
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


def native_search(index: PostingIndex, lexical: str = "m3") -> Search:
    return lambda query: index.top(index.query(query, lexical), K).positions


class twin_kernels:
    """Within it, the index's searches run on the numpy twins."""

    def __init__(self, index: PostingIndex) -> None:
        self._index, self._kept = index, (sparse.kernels, index._kernel_blocks)

    def __enter__(self) -> None:
        sparse.kernels = _kernels_numpy
        self._index._kernel_blocks = [_kernels_numpy.PostingBlock(*block) for block in self._index._blocks]

    def __exit__(self, *_: object) -> None:
        sparse.kernels, self._index._kernel_blocks = self._kept


class FlatPostings:
    """What one writes in numpy without further thought: for each token its documents and float32 weights, added up for
    all documents; then the K best. Also the judge of what the others find."""

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.n_documents = 0

    def add(self, rows: SparseRows) -> None:
        lengths = np.diff(rows.offsets)
        documents = np.repeat(np.arange(self.n_documents, self.n_documents + len(lengths), dtype=np.int32), lengths)
        self._blocks.append((rows.ids.astype(np.int32), documents, rows.weights))
        self.n_documents += len(lengths)

    def finish(self) -> None:
        n = sum(len(tokens) for tokens, _, _ in self._blocks)
        sizes = np.zeros(VOCABULARY, np.int64)
        for tokens, _, _ in self._blocks:
            sizes += np.bincount(tokens, minlength=VOCABULARY)
        self.starts = offsets_of(sizes)
        self.documents, self.weights = np.empty(n, np.int32), np.empty(n, np.float32)
        free = self.starts[:-1].copy()
        while self._blocks:
            tokens, documents, weights = self._blocks.pop(0)
            order = np.argsort(tokens, kind="stable")
            sizes = np.bincount(tokens, minlength=VOCABULARY)
            at = np.arange(len(tokens)) + np.repeat(free - offsets_of(sizes)[:-1], sizes)
            self.documents[at], self.weights[at] = documents[order], weights[order]
            free += sizes

    @property
    def size_bytes(self) -> int:
        return self.documents.nbytes + self.weights.nbytes + self.starts.nbytes

    def postings_of(self, query: SparseRows) -> int:
        return int((self.starts[query.ids + 1] - self.starts[query.ids]).sum())

    def scores(self, query: SparseRows) -> np.ndarray:
        scores = np.zeros(self.n_documents, np.float32)
        for token, weight in zip(query.ids.tolist(), query.weights, strict=True):
            where = slice(self.starts[token], self.starts[token + 1])
            scores[self.documents[where]] += weight * self.weights[where]
        return scores

    def search(self, query: SparseRows) -> np.ndarray:
        scores = self.scores(query)
        best = np.argpartition(scores, len(scores) - K)[len(scores) - K :]
        return best[np.argsort(-scores[best])]


def scipy_search(flat: FlatPostings) -> Search | None:
    """scipy's product of a sparse matrix [documents, vocabulary] and a query."""
    try:
        from scipy.sparse import csc_array
    except ImportError:
        return None
    # by column; a query's row times it touches all columns, so only the query's are taken
    matrix = csc_array((flat.weights, flat.documents, flat.starts), shape=(flat.n_documents, VOCABULARY))

    def search(query: SparseRows) -> np.ndarray:
        scores = matrix[:, query.ids] @ query.weights
        best = np.argpartition(scores, len(scores) - K)[len(scores) - K :]
        return best[np.argsort(-scores[best])]

    return search


def bm25s_search(flat: FlatPostings) -> Search | None:
    """bm25s' retrieval over our weights in its own arrays: it adds up a query's postings as it does for BM25, which
    counts a query's tokens and has no weights for them."""
    try:
        import bm25s
    except ImportError:
        return None
    retriever = bm25s.BM25(backend="numpy")
    retriever.scores = {
        "data": flat.weights,
        "indices": flat.documents,
        "indptr": flat.starts,
        "num_docs": flat.n_documents,
    }
    retriever.nonoccurrence_array = None
    retriever.unique_token_ids_set = set(range(VOCABULARY))

    def search(query: SparseRows) -> np.ndarray:
        scores = retriever.get_scores(query.ids.tolist())
        return bm25s.selection.topk(scores, K, backend="numpy")[1]

    return search


def tantivy_search(flat: FlatPostings) -> Search | None:
    """tantivy's BM25 (block-max WAND) over the same tokens as words."""
    try:
        import tantivy
    except ImportError:
        return None
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("tokens", stored=False, tokenizer_name="whitespace", index_option="freq")
    index = tantivy.Index(builder.build())
    writer = index.writer(heap_size=300_000_000, num_threads=1)
    tokens = np.repeat(np.arange(VOCABULARY, dtype=np.int32), np.diff(flat.starts))
    order = np.argsort(flat.documents, kind="stable")
    starts = offsets_of(np.bincount(flat.documents, minlength=flat.n_documents))
    tokens = tokens[order]
    for i in range(flat.n_documents):
        words = " ".join(map(str, tokens[starts[i] : starts[i + 1]].tolist()))
        writer.add_document(tantivy.Document(tokens=words))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()

    def search(query: SparseRows) -> np.ndarray:
        words = index.parse_query(" ".join(map(str, query.ids.tolist())), ["tokens"])
        return np.array([address.doc for _, address in searcher.search(words, K, count=False).hits])

    return search


# Measuring


def measure(
    name: str, queries: list[SparseRows], search: Search, judge: FlatPostings | None, bytes_a_posting: float | None
) -> dict[str, Any]:
    """Each query's best of three runs, so that what else the machine does counts little; then median and p99."""
    times = []
    for query in queries:
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            search(query)
            runs.append(time.perf_counter() - started)
        times.append(1000 * min(runs))
    row: dict[str, Any] = {
        "name": name,
        "median_ms": round(float(np.median(times)), 3),
        "p99_ms": round(float(np.percentile(times, 99)), 3),
    }
    if judge is not None:
        row["lost"] = max(_lost(judge, query, search(query)) for query in queries[:20])
    if bytes_a_posting is not None:
        row["bytes_a_posting"] = round(bytes_a_posting, 2)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _lost(judge: FlatPostings, query: SparseRows, found: np.ndarray) -> float:
    """By how much the K-th best float32 score is above the least found one: 0 for an exact result."""
    scores = judge.scores(query)
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
