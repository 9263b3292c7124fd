"""When two results on OpenVINO are the same."""

from __future__ import annotations

import numpy as np

from m3edge import Embeddings


def assert_same(left: Embeddings, right: Embeddings, cosine: float = 0.99999) -> None:
    assert (left.dense * right.dense).sum(axis=-1).min() >= cosine
    assert (left.tokens.vectors * right.tokens.vectors).sum(axis=1).min() >= cosine
    assert left.sparse.ids.tolist() == right.sparse.ids.tolist()
    np.testing.assert_allclose(left.sparse.weights, right.sparse.weights, atol=1e-3)
