"""The steps of a benchmark, each run in a process of its own: `python -m m3edge.bench.steps STEP JOB_FILE RESULT_FILE`.

A fresh process is what makes peak memory and cold start mean something. STEP is one of STEPS; the job is the JSON that
run.py writes; the result is written atomically, so that a file that is there is whole.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.bench.memory import peak_memory_mb
from m3edge.bench.stopwatch import SearchClock
from m3edge.corpus import IndexedCorpus
from m3edge.encoder import Encoder
from m3edge.evaluation import BeirDataset, evaluate_encoded, read_beir
from m3edge.files import write_atomically
from m3edge.index import Document, Index

_GROWTH = (1 / 8, 1 / 4, 1 / 2, 1)  # shares of the corpus at which the index is looked at
_GROWTH_QUERIES = 32
_LATENCY_QUERIES = 64
_WARM_UP_QUERIES = 5
_SAMPLE_TOKENS = 16_384  # of the documents that throughput is measured on
_SAMPLE_DOCUMENTS = 256


def index_step(job: dict[str, Any]) -> dict[str, Any]:
    """Build the index, looking at it as it grows: the engine, seconds, peak memory, and milliseconds and bytes at each
    size."""
    dataset, encoder = _dataset(job), _encoder(job)
    folder = Path(job["index"])
    if folder.exists():
        shutil.rmtree(folder)
    queries = [encoder.encode_queries(text) for text in list(dataset.queries.values())[:_GROWTH_QUERIES]]
    documents = [Document(id_, text) for id_, text in dataset.corpus.items()]
    Index.create(folder, encoder, token_codec=job["token_codec"]).close()
    growth: list[dict[str, Any]] = []
    done, seconds = 0, 0.0
    for share in _GROWTH:
        upto = max(1, round(share * len(documents)))
        if upto == done:
            continue
        started = time.perf_counter()
        with Index.open(folder, encoder) as index:
            index.add(documents[done:upto], progress=None)
        seconds += time.perf_counter() - started
        done = upto
        started = time.perf_counter()
        with Index.open(folder, encoder) as index:
            open_ms = 1000 * (time.perf_counter() - started)
            times = [min(_search_ms(index, query) for _ in range(3)) for query in queries]
        growth.append(
            {
                "documents": done,
                "search_ms": round(float(np.median(times)), 3),
                "open_ms": round(open_ms, 1),
                "size_bytes": sum(path.stat().st_size for path in folder.iterdir()),
            }
        )
    return {
        "provider": encoder.provider, "seconds": round(seconds, 2), "peak_mb": peak_memory_mb(), "growth": growth,
    }  # fmt: skip


def quality_step(job: dict[str, Any]) -> dict[str, Any]:
    """Every mode's metrics, on the index's own vectors."""
    dataset, encoder = _dataset(job), _encoder(job)
    with Index.open(job["index"], encoder) as index:
        queries = encoder.encode_queries(list(dataset.queries.values()), progress=None)
        return evaluate_encoded(IndexedCorpus(index), queries, dataset, progress=None).to_json()


def round_step(job: dict[str, Any]) -> dict[str, Any]:
    """One round of speed: a cold start, then searches one by one, then documents in bulk."""
    imported = time.time()
    encoder = _encoder(job)
    loaded = time.time()
    index = Index.open(job["index"], encoder)
    opened = time.time()
    index.search(job["first_query"])
    answered = time.time()
    start = {
        "python": imported - job["started"],
        "load model": loaded - imported,
        "open index": opened - loaded,
        "first search": answered - opened,
        "total": answered - job["started"],
    }
    dataset = _dataset(job)
    clock = SearchClock(index)
    queries = list(dataset.queries.values())[:_LATENCY_QUERIES]
    for query in queries[:_WARM_UP_QUERIES]:
        clock.search(query)
    latency = [clock.search(query)[1] for query in queries]
    query_peak_mb = peak_memory_mb()
    index.close()
    sample, n_tokens = _sample(encoder, dataset)
    encoder.encode_passages(sample[: len(sample) // 8 + 1])
    started = time.perf_counter()
    encoder.encode_passages(sample)
    seconds = time.perf_counter() - started
    return {
        "start_s": {name: round(value, 3) for name, value in start.items()},
        "latency_ms": {name: [round(times[name], 3) for times in latency] for name in latency[0]},
        "query_peak_mb": query_peak_mb,
        "documents_per_s": round(len(sample) / seconds, 2),
        "tokens_per_s": round(n_tokens / seconds, 1),
        "encode_peak_mb": peak_memory_mb(),
    }


STEPS = {"index": index_step, "quality": quality_step, "round": round_step}


def _dataset(job: dict[str, Any]) -> BeirDataset:
    return read_beir(job["data"], split=job["split"], n_queries=job["queries"], n_documents=job["documents"])


def _encoder(job: dict[str, Any]) -> Encoder:
    return Encoder.load(job["model"], job["provider"], n_threads=job["threads"])


def _search_ms(index: Index, query: Any) -> float:
    started = time.perf_counter()
    index.search(query)
    return 1000 * (time.perf_counter() - started)


def _sample(encoder: Encoder, dataset: BeirDataset) -> tuple[list[str], int]:
    """Documents from all over the corpus, and how many tokens they are as the model reads them."""
    texts = list(dataset.corpus.values())
    order = np.random.default_rng(0).permutation(len(texts))[:_SAMPLE_DOCUMENTS]
    info = encoder.info
    tokenized = encoder.tokenizer.tokenize(
        [texts[i] for i in order], prefix=info.passage_prefix, max_length=info.max_length
    )
    lengths = np.array([len(text.ids) for text in tokenized])
    n = max(1, int(np.searchsorted(np.cumsum(lengths), _SAMPLE_TOKENS, side="right")))
    return [texts[i] for i in order[:n]], int(lengths[:n].sum())


def main(step: str, job_file: str, result_file: str) -> None:
    """Run one step on the job in a file and write what it returns to another."""
    result = STEPS[step](json.loads(Path(job_file).read_bytes()))
    write_atomically(Path(result_file), json.dumps(result).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
