"""A whole search over vectors that are there: dense and lexical candidates joined and ranked; time beside nDCG@10.

m3edge and qdrant get the same dense, sparse and token vectors. LanceDB has no learned sparse vectors: it joins the
dense vectors with its own full-text search.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import run_contestant, times_ms

K, CANDIDATES = 10, 100


def measure(data: Path, search: Callable[[int], list[str]], version: str) -> dict[str, Any]:
    """search: a query's number to the ids of what was found, best first"""
    ids = json.loads((data / "search.json").read_text())["query_ids"]
    query_ms = times_ms([lambda i=i: search(i) for i in range(len(ids))])
    return {
        "version": version,
        "query_ms": float(np.median(query_ms)),
        "run": {id_: search(i) for i, id_ in enumerate(ids)},
    }


class Vectors:
    """The vectors of all texts of one side, as the runner left them."""

    def __init__(self, data: Path, side: str) -> None:
        self._arrays = np.load(data / f"search-{side}.npz")
        self.dense = self._arrays["dense"]

    def __len__(self) -> int:
        return len(self.dense)

    def sparse(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(*self._arrays["sparse_offsets"][i : i + 2])
        return self._arrays["ids"][rows], self._arrays["weights"][rows]

    def tokens(self, i: int) -> np.ndarray:
        return self._arrays["tokens"][slice(*self._arrays["token_offsets"][i : i + 2])]


def m3edge(data: Path) -> dict[str, Any]:
    import m3edge

    texts = json.loads((data / "search.json").read_text())
    encoder = m3edge.Encoder.load(data / "models" / "mini-int8", "cpu", n_threads=2)
    with tempfile.TemporaryDirectory() as folder, m3edge.Index.create(Path(folder) / "index", encoder) as index:
        index.add(m3edge.Document(id_, text) for id_, text in zip(texts["ids"], texts["texts"], strict=True))
        queries = [encoder.encode_queries(text) for text in texts["queries"]]
        return measure(
            data, lambda i: [hit.id for hit in index.search(queries[i], K, candidates=CANDIDATES)], m3edge.__version__
        )


def qdrant(data: Path) -> dict[str, Any]:
    """Local mode: candidates by dense and by sparse vectors, ranked by MaxSim."""
    from importlib.metadata import version

    from qdrant_client import QdrantClient, models

    ids = json.loads((data / "search.json").read_text())["ids"]
    passages, queries = Vectors(data, "passages"), Vectors(data, "queries")
    client = QdrantClient(":memory:")
    dim = passages.dense.shape[1]
    client.create_collection(
        "texts",
        vectors_config={
            "dense": models.VectorParams(size=dim, distance=models.Distance.DOT),
            "tokens": models.VectorParams(
                size=passages.tokens(0).shape[1],
                distance=models.Distance.DOT,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            ),
        },
        sparse_vectors_config={"sparse": models.SparseVectorParams()},
    )

    def vector(side: Vectors, i: int) -> models.SparseVector:
        token_ids, weights = side.sparse(i)
        return models.SparseVector(indices=token_ids.tolist(), values=weights.tolist())

    points = [
        models.PointStruct(
            id=i,
            vector={
                "dense": passages.dense[i].tolist(),
                "sparse": vector(passages, i),
                "tokens": passages.tokens(i).tolist(),
            },
        )
        for i in range(len(passages))
    ]
    for start in range(0, len(points), 64):
        client.upsert("texts", points[start : start + 64])
    ready = [(queries.dense[i].tolist(), vector(queries, i), queries.tokens(i).tolist()) for i in range(len(queries))]

    def search(i: int) -> list[str]:
        dense, sparse, tokens = ready[i]
        found = client.query_points(
            "texts",
            prefetch=[
                models.Prefetch(query=dense, using="dense", limit=CANDIDATES),
                models.Prefetch(query=sparse, using="sparse", limit=CANDIDATES),
            ],
            query=tokens,
            using="tokens",
            limit=K,
        )
        return [ids[point.id] for point in found.points]

    return measure(data, search, version("qdrant-client"))


def lancedb(data: Path) -> dict[str, Any]:
    """Dense vectors and full-text search joined by reciprocal rank, its default."""
    from importlib.metadata import version

    import lancedb as package

    texts = json.loads((data / "search.json").read_text())
    passages, queries = Vectors(data, "passages"), Vectors(data, "queries")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"id": id_, "text": text, "vector": vector.tolist()}
            for id_, text, vector in zip(texts["ids"], texts["texts"], passages.dense, strict=True)
        ]
        table = package.connect(folder).create_table("texts", rows)
        table.create_fts_index("text")

        def search(i: int) -> list[str]:
            query = table.search(query_type="hybrid").vector(queries.dense[i]).text(words(texts["queries"][i]))
            return [row["id"] for row in query.limit(K).to_list()]

        return measure(data, search, version("lancedb"))


def words(text: str) -> str:
    """A question without what a full-text query language would read as its own signs."""
    return "".join(character if character.isalnum() else " " for character in text)


if __name__ == "__main__":
    run_contestant({"m3edge": m3edge, "qdrant-client, local": qdrant, "LanceDB": lancedb})
