"""Write a golden index folder: what every later m3edge must open, and what it must answer.

    python tests/data/write_index.py MODEL_FOLDER tests/data/index-3

One for each version of the format, written by the last m3edge that wrote it, and never changed again. MODEL_FOLDER: the
mini model in fp32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from m3edge import Document, Encoder, Index

QUERY = "how do I compress a file"
TEA = {"lang": "en", "nested": {"a": [1, 2.5, None]}}
DOCUMENTS = [
    Document("gzip", "The gzip module compresses and decompresses files.", {"lang": "en", "year": 2001}),
    Document("tea", "Green tea is made from unoxidised leaves.", TEA),
    Document("zip-zh", "使用 zipfile 模块压缩文件。", {"lang": "zh"}),
    Document("gone", "This document was deleted."),
    Document("mail/de ✓", "Mit smtplib verschickt man E-Mails.", {"lang": "de"}),
    Document("surrogate", "lone \ud800 surrogate"),
    Document("empty", ""),
]


def main(model: Path, folder: Path) -> None:
    encoder = Encoder.load(model, "cpu")
    with Index.create(folder / "index", encoder) as index:
        index.add(DOCUMENTS[:4])
        index.add(DOCUMENTS[4:])
        index.delete("gone")
        index.compact()
        index.upsert([Document("tea", "Green tea comes from leaves that were not oxidised.", TEA)])
        index.set_note("made_by", "m3edge 0.1.0")
        query = encoder.encode_queries(QUERY)
        hits = index.search(query)
    assert query.sparse is not None
    assert query.tokens is not None
    sparse = {f"sparse_{name}": array for name, array in query.sparse._asdict().items()}
    np.savez(
        folder / "query.npz",
        allow_pickle=False,
        dense=query.dense,
        tokens=query.tokens.vectors,
        token_offsets=query.tokens.offsets,
        **sparse,
    )
    found = [{**hit._asdict(), "scores": list(hit.scores), "explanation": None} for hit in hits]
    expected = json.dumps({"note": "m3edge 0.1.0", "hits": found}, indent=1)
    (folder / "expected.json").write_text(expected + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
