"""What the tests of OpenVINO encode, and when two results are the same."""

from __future__ import annotations

import numpy as np

from m3edge import Embeddings

TEXTS = [
    "How do I compress a file?",
    "",
    "压缩文件的方法",
    "كيف أضغط ملفا",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "Сжатие файлов",
    "naïve café ﬁle Ⅷ",
]


def assert_same(left: Embeddings, right: Embeddings, cosine: float = 0.99999) -> None:
    assert (left.dense * right.dense).sum(axis=-1).min() >= cosine
    assert (left.tokens.vectors * right.tokens.vectors).sum(axis=1).min() >= cosine
    assert left.sparse.ids.tolist() == right.sparse.ids.tolist()
    np.testing.assert_allclose(left.sparse.weights, right.sparse.weights, atol=1e-3)
