"""Token pooling (arXiv 2409.14683): a passage's token vectors merged into fewer, by Ward's method."""

from __future__ import annotations

import numpy as np

from m3edge.embeddings import TokenRows, offsets_of

_STRETCH = 512  # tokens clustered together: the work grows with the cube


def pool_tokens(tokens: TokenRows, factor: int) -> TokenRows:
    """Each text's n token vectors merged into about n / factor, rounded up: the means of clusters, unit length again.

    Texts of more than 512 tokens are pooled in stretches of 512.
    """
    if factor == 1:
        return tokens
    parts, lengths = [np.empty((0, tokens.vectors.shape[1]), np.float32)], []
    for start, end in zip(tokens.offsets[:-1].tolist(), tokens.offsets[1:].tolist(), strict=True):
        stretches = [tokens.vectors[i : min(i + _STRETCH, end)] for i in range(start, end, _STRETCH)]
        pooled = [_pooled(stretch, -(-len(stretch) // factor)) for stretch in stretches]
        parts += pooled
        lengths.append(sum(len(part) for part in pooled))
    return TokenRows(np.concatenate(parts), offsets_of(lengths))


def ward_labels(vectors: np.ndarray, n_clusters: int) -> np.ndarray:
    """The cluster of each of some vectors, float32 [n, dim], by Ward's method: int64 [n], 0 … n_clusters - 1.

    Again and again the two clusters are merged whose union raises the sum of squared distances to the means least.
    """
    n = len(vectors)
    labels = np.arange(n)
    sizes = np.ones(n, np.float32)
    squares = (vectors * vectors).sum(axis=1)
    costs = np.maximum(squares[:, None] + squares - 2 * (vectors @ vectors.T), 0)  # twice the rise, which ranks alike
    np.fill_diagonal(costs, np.inf)
    for _ in range(n - n_clusters):
        a, b = sorted(divmod(int(costs.argmin()), n))
        # The rise for a ∪ b and any c follows from the three pairs' (Lance and Williams).
        merged = (sizes[a] + sizes) * costs[a] + (sizes[b] + sizes) * costs[b] - sizes * costs[a, b]
        merged /= sizes[a] + sizes[b] + sizes
        merged[[a, b]] = np.inf
        costs[a], costs[:, a] = merged, merged
        costs[b], costs[:, b] = np.inf, np.inf
        sizes[a] += sizes[b]
        labels[labels == b] = a
    return np.unique(labels, return_inverse=True)[1]


def _pooled(vectors: np.ndarray, n_clusters: int) -> np.ndarray:
    labels = ward_labels(vectors, n_clusters)
    sums = np.zeros((n_clusters, vectors.shape[1]), np.float32)
    np.add.at(sums, labels, vectors)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.maximum(norms, np.float32(1e-12))
