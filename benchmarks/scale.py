"""An index of N synthetic documents: how fast it is written, opened, searched and compacted, its size and its memory.

    python benchmarks/scale.py 100000

Vectors are random around 1,000 centres, sparse entries follow Zipf's law, texts have 400 letters: the structure of a
real index, at a size for which encoding texts would take days. All goes in as one transaction, in portions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from machine import ROOT, describe_machine

from m3edge import Document, Embeddings, Index
from m3edge.embeddings import SparseRows, TokenRows, offsets_of
from m3edge.model_folder import PRESETS
from m3edge.session import available_cpus

PORTION = 1000
ENTRIES = 40  # sparse entries a document
VOCABULARY = 250_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", type=int)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=20, help="token vectors a document; default: %(default)s")
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    result = {"machine": describe_machine(), **vars(options)}
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        result |= measure(Path(folder) / "index", options)
    path = ROOT / "benchmarks" / "results" / f"scale-{options.documents}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=1))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float | dict[str, float]]:
    info = SimpleNamespace(
        name="synthetic",
        fingerprint="0" * 64,
        precision="fp32",
        dense_dim=options.dim,
        token_dim=options.dim,
        presets=PRESETS,
    )
    # as much of an Encoder as an index needs
    model = SimpleNamespace(info=info, session=SimpleNamespace(n_threads=available_cpus()))
    rng = np.random.default_rng(0)
    centres = unit(rng, 1000, options.dim)
    results: dict[str, float | dict[str, float]] = {}
    with Index.create(folder, model) as index:  # type: ignore[arg-type]
        written = 0.0
        rss = []
        started = time.perf_counter()
        with index.transaction():
            for first, embeddings in portions(rng, centres, options):
                documents = [Document(f"d{first + i}", f"{first + i} " * 60) for i in range(len(embeddings))]
                before = time.perf_counter()
                index.add(documents, embeddings=embeddings)
                written += time.perf_counter() - before
                rss.append(rss_mib())
                if first + len(embeddings) >= options.documents:
                    committing = time.perf_counter()
        now = time.perf_counter()
        results["write_s"] = round(written, 2)
        results["commit_and_index_s"] = round(now - committing, 2)
        results["rss_while_writing_mib"] = {
            "first_tenth": max(rss[: len(rss) // 10 + 1]),
            "last_tenth": max(rss[-len(rss) // 10 :]),
        }
        results["all_s"] = round(now - started, 2)
        before = time.perf_counter()
    results["close_s"] = round(time.perf_counter() - before, 2)
    results["size_mib"] = {path.name.split("-")[0]: round(path.stat().st_size / 2**20, 1) for path in folder.iterdir()}
    before = time.perf_counter()
    with Index.open(folder, model) as index:  # type: ignore[arg-type]
        results["open_s"] = round(time.perf_counter() - before, 3)
        queries = [
            embeddings[i]
            for _, embeddings in portions(rng, centres, options, options.queries)
            for i in range(len(embeddings))
        ]
        for name in ("search_first_ms", "search_again_ms"):  # the first time, checksums of token vectors are compared
            times = []
            for query in queries:
                before = time.perf_counter()
                index.search(query, k=10)
                times.append(1000 * (time.perf_counter() - before))
            p50, p99 = np.percentile(times, [50, 99])
            results[name] = {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
        results["rss_searching_mib"] = rss_mib()
        index.delete([f"d{i}" for i in range(0, options.documents, 2)])
        before = time.perf_counter()
        report = index.compact()
        results["compact_half_s"] = round(time.perf_counter() - before, 2)
        results["compact_mib"] = {"before": report.bytes_before >> 20, "after": report.bytes_after >> 20}
    return results


def portions(
    rng: np.random.Generator, centres: np.ndarray, options: argparse.Namespace, n: int | None = None
) -> Iterator[tuple[int, Embeddings]]:
    n = options.documents if n is None else n
    for first in range(0, n, PORTION):
        count = min(PORTION, n - first)
        dense = centres[rng.integers(0, len(centres), count)] + unit(rng, count, options.dim)
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        tokens = TokenRows(
            unit(rng, count * options.tokens, options.dim), np.arange(count + 1, dtype=np.int64) * options.tokens
        )
        yield (
            first,
            Embeddings(dense=dense, sparse=sparse_rows(rng, count), tokens=tokens, truncated=np.zeros(count, bool)),
        )


def sparse_rows(rng: np.random.Generator, count: int) -> SparseRows:
    rows = [np.unique(np.minimum(rng.zipf(1.3, ENTRIES), VOCABULARY) - 1) for _ in range(count)]
    ids = np.concatenate(rows).astype(np.int64)
    return SparseRows(
        ids, rng.random(len(ids), np.float32), np.ones(len(ids), np.int32), offsets_of([len(row) for row in rows])
    )


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((n, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rss_mib() -> float:
    """Memory of this process that is its own: mapped files do not count."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["RssAnon"].split()[0]) / 1024, 1)


if __name__ == "__main__":
    main()
