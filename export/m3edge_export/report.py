"""Precisions and engines side by side: what each costs on disk, in memory and at start, and how far its vectors are
from fp32's.

Every number is measured here, with the runtime that will serve the model; the reference is the first fp32 folder given.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.embeddings import Embeddings
from m3edge.encoder import Encoder
from m3edge.evaluation import evaluate, read_beir
from m3edge.model_folder import GRAPH, LAYERS, STATIC_GRAPH, STATIC_WEIGHTS, WEIGHTS, read_model_folder
from m3edge.scoring import lexical_scores, maxsim
from m3edge_export.verify import engines

# What each engine reads of a folder, beside the tokenizer.
FILES = {"cpu": (GRAPH, WEIGHTS), "native": (LAYERS, WEIGHTS), "openvino": (STATIC_GRAPH, WEIGHTS, STATIC_WEIGHTS)}
_QUERIES = 8  # of the texts, the shortest, stand for queries when scores are compared

# Run in a process of its own, so that nothing else is in the memory it reports.
_START = """
import json, sys, time
from m3edge.bench.memory import peak_memory_mb
start = time.perf_counter()
from m3edge import Encoder
encoder = Encoder.load(sys.argv[1], sys.argv[2])
loaded = time.perf_counter()
encoder.encode_queries("one short query")
first = time.perf_counter()
encoder.encode_passages([sys.stdin.read()] * 8)
times = {"load_seconds": loaded - start, "first_vector_seconds": first - start}
print(json.dumps({**times, "peak_mb": peak_memory_mb()}))
"""


class Fidelity(NamedTuple):
    """How near one precision's vectors and scores are to fp32's, over some texts."""

    dense_cosine_mean: float
    dense_cosine_p1: float
    dense_cosine_worst: float
    token_cosine_mean: float
    token_cosine_p1: float
    token_cosine_worst: float
    sparse_weight_difference: float  # mean of |w - w'| over the mean of w
    sparse_jaccard: float  # of the sets of tokens with a weight, mean over texts
    sparse_rank_correlation: float  # Spearman's, of the scores of one query with all texts, mean over queries
    maxsim_difference: float  # mean of |s - s'|


def build_report(
    folders: Sequence[Path], texts: Sequence[str], *, data: Path | None = None, n_queries: int | None = None
) -> list[dict[str, Any]]:
    """One row for each model folder and CPU engine that is installed and runs it.

    data: a BEIR folder, adds nDCG@10 of every mode

    Raises ValueError when the folders are not of one model or none is in fp32.
    """
    infos = [read_model_folder(folder, verify=False) for folder in folders]
    if len({info.fingerprint for info in infos}) != 1:
        raise ValueError(f"models must be one model's precisions, got {sorted({info.name for info in infos})}")
    reference_folder = next((f for f, info in zip(folders, infos, strict=True) if info.precision == "fp32"), None)
    if reference_folder is None:
        raise ValueError(f"models must include an fp32 folder to compare with, got {[i.precision for i in infos]}")
    reference = Encoder.load(reference_folder, "cpu").encode_passages(texts, progress=None)
    rows = []
    runs = [(folder, info, engine) for folder, info in zip(folders, infos, strict=True) for engine in engines(folder)]
    for folder, info, engine in runs:
        encoder = Encoder.load(folder, engine)
        files = FILES[engine]
        row: dict[str, Any] = {
            "model": info.name,
            "precision": info.precision,
            "engine": engine,
            "graph_mb": sum((folder / name).stat().st_size for name in files) / 1e6,
            "folder_mb": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
            **measure_start(folder, " ".join(texts), engine),
            **fidelity(reference, encoder.encode_passages(texts, progress=None))._asdict(),
        }
        if data is not None:
            modes = evaluate(encoder, read_beir(data, n_queries=n_queries), progress=None).modes
            row["ndcg"] = {mode: values["nDCG@10"] for mode, values in modes.items()}
        rows.append(row)
    return rows


def fidelity(reference: Embeddings, other: Embeddings) -> Fidelity:
    """Compare two precisions' embeddings of the same texts, each with all heads."""
    assert reference.dense is not None
    assert reference.sparse is not None
    assert reference.tokens is not None
    assert other.dense is not None
    assert other.sparse is not None
    assert other.tokens is not None
    dense = (reference.dense * other.dense).sum(axis=1)
    tokens = (reference.tokens.vectors * other.tokens.vectors).sum(axis=1)
    weights = reference.sparse.weights, other.sparse.weights
    shortest = np.argsort(np.diff(reference.tokens.offsets), kind="stable")[:_QUERIES]
    correlations, differences = [], []
    for i in shortest.tolist():
        ours, theirs = other[i], reference[i]
        assert ours.sparse is not None
        assert ours.tokens is not None
        assert theirs.sparse is not None
        assert theirs.tokens is not None
        lexical = lexical_scores(theirs.sparse, reference.sparse), lexical_scores(ours.sparse, other.sparse)
        if (correlation := _spearman(*lexical)) is not None:
            correlations.append(correlation)
        late = maxsim(theirs.tokens.vectors, reference.tokens) - maxsim(ours.tokens.vectors, other.tokens)
        differences.append(float(np.abs(late).mean()))
    return Fidelity(
        float(dense.mean()), float(np.percentile(dense, 1)), float(dense.min()),
        float(tokens.mean()), float(np.percentile(tokens, 1)), float(tokens.min()),
        float(np.abs(weights[0] - weights[1]).mean() / weights[0].mean()),
        float(np.mean([_jaccard(reference[i], other[i]) for i in range(len(reference))])),
        float(np.mean(correlations)) if correlations else 1.0,
        float(np.mean(differences)),
    )  # fmt: skip


def measure_start(folder: Path, text: str, engine: str = "cpu") -> dict[str, float]:
    """load_seconds, first_vector_seconds, from before m3edge is imported, and peak_mb after one full batch."""
    command = [sys.executable, "-c", _START, str(folder), engine]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


_COLUMNS = (
    ("precision", "precision", "{}"),
    ("engine", "engine", "{}"),
    ("graph_mb", "MB", "{:.0f}"),
    ("load_seconds", "load s", "{:.2f}"),
    ("first_vector_seconds", "first vector s", "{:.2f}"),
    ("peak_mb", "peak MB", "{:.0f}"),
    ("dense_cosine_mean", "dense cos mean", "{:.5f}"),
    ("dense_cosine_p1", "p1", "{:.5f}"),
    ("dense_cosine_worst", "worst", "{:.5f}"),
    ("token_cosine_mean", "token cos mean", "{:.5f}"),
    ("token_cosine_worst", "worst", "{:.4f}"),
    ("maxsim_difference", "MaxSim diff", "{:.4f}"),
    ("sparse_weight_difference", "sparse diff", "{:.4f}"),
    ("sparse_jaccard", "Jaccard", "{:.4f}"),
    ("sparse_rank_correlation", "rank corr", "{:.5f}"),
)
_MODES = ("dense", "sparse", "tokens", "all")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The report as a Markdown table, one line a precision and engine."""
    with_quality = "ndcg" in rows[0]
    titles = [title for _, title, _ in _COLUMNS] + [f"nDCG@10 {mode}" for mode in _MODES if with_quality]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
    for row in rows:
        cells = [form.format(row[key]) for key, _, form in _COLUMNS]
        if with_quality:
            cells += [f"{row['ndcg'][mode]:.4f}" for mode in _MODES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _jaccard(left: Embeddings, right: Embeddings) -> float:
    assert left.sparse is not None
    assert right.sparse is not None
    ours, theirs = (set(rows.ids[rows.weights > 0].tolist()) for rows in (left.sparse, right.sparse))
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def _spearman(left: np.ndarray, right: np.ndarray) -> float | None:
    """Rank correlation over the texts that share a token with the query; None for fewer than three."""
    shared = (left > 0) | (right > 0)
    if shared.sum() < 3:
        return None
    ranks = [np.argsort(np.argsort(values[shared], kind="stable"), kind="stable") for values in (left, right)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
