"""An index of N synthetic documents: how fast it is written, opened, searched and compacted, its size and its memory.

    python benchmarks/scale.py build FOLDER 100000     # minutes, or an hour for a million; may run beside other work
    python benchmarks/scale.py search FOLDER 100000    # wants a quiet machine, and so does the next
    python benchmarks/scale.py compact FOLDER 100000   # deletes half of the documents, twice; ends the index's use here

Vectors are random around 1,000 centres, sparse entries follow Zipf's law, texts have some 400 letters: the structure of
a real index, at a size for which encoding texts would take days. All goes in as one transaction, streamed. Each step
adds what it measured to results/scale.json, under the number of documents.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from machine import RESULTS, describe_machine

from m3edge import Document, Embeddings, Index
from m3edge.cpu import available_cpus
from m3edge.embeddings import SparseRows, TokenRows, offsets_of
from m3edge.files import write_atomically
from m3edge.model_folder import PRESETS

PORTION = 1000
ENTRIES = 40  # sparse entries a document
VOCABULARY = 250_000
LANGUAGES = ("de", "en", "fr", "es", "zh", "ar", "ru", "hi", "tr", "vi")
QUERY_SEED = 99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["build", "search", "compact"])
    parser.add_argument("folder", type=Path, help="where the index is, or is to be made")
    parser.add_argument("documents", type=int)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=8, help="token vectors a document; default: %(default)s")
    parser.add_argument("--dense", default="auto", help="as for Index.create; default: %(default)s")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()
    model = synthetic_model(options.dim)
    step = {"build": build, "search": measure_searches, "compact": compact}[options.step]
    found = step(options.folder / f"scale-{options.documents}", model, options)
    keep(options.out, options, {"machine": describe_machine(), **found})
    print(json.dumps(found, indent=1))


def keep(path: Path, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Put what a step found into the result file, beside what the other steps did."""
    report = json.loads(path.read_bytes()) if path.exists() else {}
    row = report.setdefault(str(options.documents), {})
    row["settings"] = {"dim": options.dim, "tokens": options.tokens, "queries": options.queries}
    row[options.step] = found
    ordered = {key: report[key] for key in sorted(report, key=int)}
    write_atomically(path, json.dumps(ordered, indent=1).encode() + b"\n")


# The steps


def build(folder: Path, model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Write the index; how long its parts take, by the clock and in CPU time, and what memory they need."""
    clock = Clock()
    rss: list[float] = []
    with Index.create(folder, model, dense=options.dense) as index, memory_peak() as peak:
        with clock.part("all"):
            with index.transaction():
                for first, embeddings in portions(rng_of_documents(), options.documents, options):
                    documents = [document(first + i) for i in range(len(embeddings))]
                    with clock.part("write"):
                        index.add(documents, embeddings=embeddings)
                    rss.append(own_memory_mib())
                peak.after_writing = peak.mib
                index_started = clock.now()
            clock.add("commit and index", index_started)
        dense = "hnsw" if index_has_graph(index) else "exact"
        with clock.part("save"):
            index.close()
    tenth = len(rss) // 10 + 1
    return {
        "dense": dense,
        **clock.found,
        "memory_mib": {"first tenth": max(rss[:tenth]), "last tenth": max(rss[-tenth:]), "peak": round(peak.mib)},
        "size_mib": sizes(folder),
    }


def measure_searches(folder: Path, model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Open it, from the disk and from the system's cache, and search it in every way."""
    found: dict[str, Any] = {}
    before = own_memory_mib()
    forget_cached(folder)
    clock = Clock()
    with clock.part("open_cold"):
        Index.open(folder, model).close()
    opened = []
    for _ in range(3):
        clock.found.pop("open", None)
        with clock.part("open"):
            Index.open(folder, model).close()
        opened.append(clock.found["open"])
    found |= {"open_cold": clock.found["open_cold"], "open": min(opened, key=lambda part: part["wall_s"])}
    rng = np.random.default_rng(QUERY_SEED)
    queries = [part[i] for _, part in portions(rng, options.queries, options) for i in range(len(part))]
    with Index.open(folder, model) as index:
        found["documents"] = len(index)
        found["dense"] = "hnsw" if index_has_graph(index) else "exact"
        found["size_mib"] = sizes(folder)
        found["first_search_ms"] = round(1000 * seconds(lambda: index.search(queries[0], k=10)), 2)
        for name in ("search_first_ms", "search_ms"):  # the first time, checksums of token vectors are compared
            found[name] = percentiles(queries, lambda query: index.search(query, k=10))
        found["memory_searching_mib"] = round(own_memory_mib() - before, 1)
        if index_has_graph(index):
            found["dense_hnsw_ms"] = percentiles(queries, lambda query: dense_only(index, query))
            found["hnsw_recall@10"] = graph_recall(index, queries)
        with without_graph(index):
            found["exact_codes_s"] = round(seconds(lambda: dense_only(index, queries[0])), 2)
            found["dense_exact_ms"] = percentiles(queries, lambda query: dense_only(index, query))
    with Index.open(folder, model) as index:
        condition = {"lang": "de", "share": {"$lt": 0.5}}
        found["first_filter_s"] = round(seconds(lambda: index.search(queries[0], filter=condition)), 3)
        found["filtered_ms"] = percentiles(queries, lambda query: index.search(query, filter=condition))
        found["memory_filtering_mib"] = round(own_memory_mib() - before, 1)
    return found


def compact(folder: Path, model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Delete half of the documents and add them again, then delete them for good and compact: the graph's recall after
    each, and the room that came back."""
    clock = Clock()
    rng = np.random.default_rng(QUERY_SEED)
    queries = [part[i] for _, part in portions(rng, options.queries, options) for i in range(len(part))]
    half = [(first, part[: len(part) // 2]) for first, part in portions(rng_of_documents(), options.documents, options)]
    ids = [f"d{first + i}" for first, part in half for i in range(len(part))]
    recall = {}
    with Index.open(folder, model) as index, memory_peak() as peak:
        recall["new"] = graph_recall(index, queries)
        with clock.part("delete half"):
            index.delete(ids)
        with clock.part("add half again"), index.transaction():
            for first, part in half:
                index.add([document(first + i) for i in range(len(part))], embeddings=part)
        recall["half deleted and added again"] = graph_recall(index, queries)
        index.delete(ids)
        with clock.part("compact"):
            report = index.compact()
        recall["half deleted, compacted"] = graph_recall(index, queries)
        left = len(index)
    return {
        "documents": left,
        **clock.found,
        "recall@10": recall,
        "mib": {"before": report.bytes_before >> 20, "after": report.bytes_after >> 20},
        "peak_memory_mib": round(peak.mib),
    }


# What is measured


class Clock:
    """Seconds by the clock and of CPU time, summed up by name: on a machine with other work the second says more."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def add(self, name: str, started: tuple[float, float]) -> None:
        sums = self.found.setdefault(name, {"wall_s": 0.0, "cpu_s": 0.0})
        for key, now, then in zip(sums, self.now(), started, strict=True):
            sums[key] = round(sums[key] + now - then, 3)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.now()
        yield
        self.add(name, started)


@contextmanager
def memory_peak() -> Iterator[SimpleNamespace]:
    """`mib`: the most memory of its own that the process had while the block ran, looked at five times a second."""
    peak, stop = SimpleNamespace(mib=0.0, after_writing=0.0), threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            peak.mib = max(peak.mib, own_memory_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.mib = max(peak.mib, own_memory_mib())


def own_memory_mib() -> float:
    """Memory of this process that is its own: mapped files do not count."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["RssAnon"].split()[0]) / 1024, 1)


def forget_cached(folder: Path) -> None:
    """Let the system drop the folder's files from its cache."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def sizes(folder: Path) -> dict[str, float]:
    """MiB by file, derived ones without the generation in their names."""
    return {
        f"{path.stem.split('-')[0]}{path.suffix}": round(path.stat().st_size / 2**20, 1)
        for path in sorted(folder.iterdir())
        if not path.name.startswith("writer")
    }


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def percentiles(queries: list[Embeddings], search: Callable[[Embeddings], Any]) -> dict[str, float]:
    p50, p99 = np.percentile([1000 * seconds(lambda query=query: search(query)) for query in queries], [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def dense_only(index: Index, query: Embeddings) -> list[Any]:
    return index.search(query, k=10, candidates=10, weights=(1, 0, 0))


def index_has_graph(index: Index) -> bool:
    with index.view.reading() as current:
        return current.state.dense.wants_graph


@contextmanager
def without_graph(index: Index) -> Iterator[None]:
    """Search without the graph while the block runs, as an index made with dense="exact" does."""
    with index.view.reading() as current:
        dense = current.state.dense
    graph, dense._graph = dense._graph, None
    yield
    dense._graph = graph


def graph_recall(index: Index, queries: list[Embeddings]) -> float:
    """How many of the ten nearest, found exactly, are found as the index is; 1 where it has no graph."""
    found = [{hit.id for hit in dense_only(index, query)} for query in queries]
    with without_graph(index):
        nearest = [{hit.id for hit in dense_only(index, query)} for query in queries]
    return round(sum(len(a & b) for a, b in zip(found, nearest, strict=True)) / (10 * len(queries)), 4)


# What is written


def synthetic_model(dim: int) -> Any:
    """As much of an Encoder as an index needs."""
    info = SimpleNamespace(
        name="synthetic", fingerprint="0" * 64, precision="fp32", dense_dim=dim, token_dim=dim, presets=PRESETS
    )
    return SimpleNamespace(info=info, session=SimpleNamespace(n_threads=available_cpus()))


def rng_of_documents() -> np.random.Generator:
    return np.random.default_rng(0)


def document(number: int) -> Document:
    share = (number * 7919) % 1000 / 1000
    metadata = {"share": share, "lang": LANGUAGES[number % 10], "source": {"page": number % 100}}
    return Document(f"d{number}", f"{number} " * 60, metadata)


def portions(rng: np.random.Generator, n: int, options: argparse.Namespace) -> Iterator[tuple[int, Embeddings]]:
    centres = unit(np.random.default_rng(1), 1000, options.dim)
    for first in range(0, n, PORTION):
        count = min(PORTION, n - first)
        dense = centres[rng.integers(0, len(centres), count)] + unit(rng, count, options.dim)
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        tokens = TokenRows(
            unit(rng, count * options.tokens, options.dim), np.arange(count + 1, dtype=np.int64) * options.tokens
        )
        sparse = sparse_rows(rng, count)
        yield first, Embeddings(dense=dense, sparse=sparse, tokens=tokens, truncated=np.zeros(count, bool))


def sparse_rows(rng: np.random.Generator, count: int) -> SparseRows:
    rows = [np.unique(np.minimum(rng.zipf(1.3, ENTRIES), VOCABULARY) - 1) for _ in range(count)]
    ids = np.concatenate(rows).astype(np.int64)
    return SparseRows(
        ids, rng.random(len(ids), np.float32), np.ones(len(ids), np.int32), offsets_of([len(row) for row in rows])
    )


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((n, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
