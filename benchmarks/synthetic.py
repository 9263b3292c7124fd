"""An index of a given size without a model: random vectors with the structure of real ones, written as real ones are.

Dense vectors of an encoder lie close together, in clusters, and mostly in few directions; here a document is a common
mean, one of 200 topics, a mix of 48 directions and some noise, so that scores spread as the mini model's do: most
between .7 and .85. Tokens are drawn by Zipf's law from 250,000; weights are what the sparse head gives, .02 to .3.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from m3edge.cpu import available_cpus
from m3edge.embeddings import Embeddings, SparseRows, TokenRows, offsets_of
from m3edge.index import Document, Index
from m3edge.index.dense import GRAPH_FILE

VOCABULARY = 250_000


class SyntheticVectors:
    """Dense vectors, number 17 always the same."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.dim, self.seed = dim, seed
        self._mean = rng.standard_normal(dim).astype(np.float32) * 2.4
        self._topics = rng.standard_normal((200, dim)).astype(np.float32) * 0.7
        self._directions = rng.standard_normal((48, dim)).astype(np.float32) / 7

    def dense(self, numbers: Sequence[int], noise: float = 0.0) -> np.ndarray:
        """float32 [n, dim], unit length; noise: how far from the numbers' own vectors, as queries are"""
        return unit(np.array([self.one(np.random.default_rng([self.seed, i]), i, noise) for i in numbers], np.float32))

    def one(self, rng: np.random.Generator, number: int, noise: float) -> np.ndarray:
        """One vector, not of unit length."""
        vector = self._mean + self._topics[rng.integers(200)]
        vector = vector + rng.standard_normal(48).astype(np.float32) @ self._directions
        vector = vector + 0.5 * rng.standard_normal(self.dim, np.float32)
        return vector + noise * np.random.default_rng(number).standard_normal(self.dim, np.float32)


class SyntheticEncoder:
    """Stands for an Encoder: every text's vectors are drawn from its number, `text 17`'s from 17."""

    def __init__(self, dim: int, tokens_a_text: int, seed: int = 0) -> None:
        self._vectors = SyntheticVectors(dim, seed)
        self._tokens_a_text = tokens_a_text
        ranks = np.arange(1, VOCABULARY + 1, dtype=np.float64) ** -1.07
        self._ranks = np.cumsum(ranks / ranks.sum())
        self.session = SimpleNamespace(n_threads=available_cpus())
        self.info = SimpleNamespace(
            name="synthetic",
            fingerprint=f"synthetic {dim} {seed}",
            precision="none",
            dense_dim=dim,
            token_dim=dim,
            presets={"general": (1.0, 0.3, 1.0)},
        )

    def encode_passages(self, texts: list[str], **_: Any) -> Embeddings:
        return self._encode([int(text.split()[1]) for text in texts], self._tokens_a_text)

    def encode_queries(self, texts: list[str] | str, **_: Any) -> Embeddings:
        """A query is a document's vectors with noise, and 32 of its tokens."""
        numbers = [int(text.split()[1]) for text in ([texts] if isinstance(texts, str) else texts)]
        return self._encode(numbers, 32, noise=0.35)

    def _encode(self, numbers: list[int], n_tokens: int, noise: float = 0.0) -> Embeddings:
        dense, tokens = [], []
        rows: list[tuple[np.ndarray, ...]] = []
        for number in numbers:
            rng = np.random.default_rng([self._vectors.seed, number])
            vector = self._vectors.one(rng, number, noise)
            ids = np.searchsorted(self._ranks, rng.random(n_tokens)).clip(0, VOCABULARY - 1)
            dense.append(vector)
            tokens.append(vector + rng.standard_normal((n_tokens, self._vectors.dim), np.float32))
            distinct, counts = np.unique(ids, return_counts=True)
            weights = rng.uniform(0.02, 0.3, len(distinct)).astype(np.float32)
            rows.append((distinct, weights, counts.astype(np.int32)))
        flat = [np.concatenate(column) for column in zip(*rows, strict=True)]
        return Embeddings(
            dense=unit(np.array(dense, np.float32)),
            sparse=SparseRows(flat[0].astype(np.int64), flat[1], flat[2], offsets_of([len(row[0]) for row in rows])),
            tokens=TokenRows(unit(np.concatenate(tokens)), offsets_of([n_tokens] * len(numbers))),
            truncated=np.zeros(len(numbers), bool),
        )


def build_index(folder: Path, encoder: SyntheticEncoder, n: int, *, dense: str = "auto") -> Index:
    """n documents with metadata whose filters pass a half, a tenth, a hundredth and a thousandth of them."""
    rng = np.random.default_rng(1)
    shares = rng.random(n)
    text = " ".join(f"word{i}" for i in range(60))
    index = Index.create(folder, encoder, dense=dense)  # type: ignore[arg-type]
    index.add(
        Document(f"d{i}", f"text {i} {text}", {"share": float(shares[i]), "lang": "de", "source": {"page": i % 100}})
        for i in range(n)
    )
    return index


def open_or_build_index(folder: Path, encoder: SyntheticEncoder, n: int) -> Index:
    """The index of n documents in folder, made first when it is not there; without a graph."""
    path = folder / f"synthetic-{n}"
    if not path.exists():
        start = time.perf_counter()
        build_index(path, encoder, n, dense="exact").close()
        print(f"{path}: built in {time.perf_counter() - start:.0f} s")
    return Index.open(path, encoder)  # type: ignore[arg-type]


def add_graph(index: Index) -> None:
    """Let an open index without a graph have one, until it is closed: built, saved, and read from its file."""
    with index.view.reading() as current, TemporaryDirectory() as folder:
        dense = current.state.dense
        dense.build_graph()
        dense.writers()[GRAPH_FILE](Path(folder) / GRAPH_FILE)
        dense.load_graph(Path(folder) / GRAPH_FILE)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
