"""`m3edge encode`: the vectors of texts, as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from m3edge.commands.options import DEFAULT, add_session_options, load_encoder, some_of
from m3edge.encoder import HEADS


def add_commands(commands: Any) -> None:
    """Add `encode` to the subparsers of the `m3edge` command."""
    encode = commands.add_parser("encode", help="print the vectors of texts, one JSON object a line")
    encode.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    encode.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none, or -, reads one text a line from stdin")
    encode.add_argument("--as", dest="kind", choices=("query", "passage", "plain"), default="passage", help=DEFAULT)
    encode.add_argument(
        "--heads", type=some_of(HEADS), default=list(HEADS), metavar="A,B", help="of dense,sparse,tokens; all"
    )
    add_session_options(encode)
    encode.set_defaults(run=_encode)


def _encode(options: argparse.Namespace) -> None:
    from_stdin = options.texts in ([], ["-"])
    texts = [line.rstrip("\n") for line in sys.stdin] if from_stdin else options.texts
    encoder = load_encoder(options, options.model)
    verb = {"query": encoder.encode_queries, "passage": encoder.encode_passages, "plain": encoder.encode}[options.kind]
    embeddings = verb(texts, heads=options.heads, progress=None).to_flagembedding()
    for i, text in enumerate(texts):
        row: dict[str, Any] = {"text": text}
        if embeddings["dense_vecs"] is not None:
            row["dense"] = embeddings["dense_vecs"][i].tolist()
        if embeddings["lexical_weights"] is not None:
            row["sparse"] = embeddings["lexical_weights"][i]
        if embeddings["colbert_vecs"] is not None:
            row["tokens"] = embeddings["colbert_vecs"][i].tolist()
        print(json.dumps(row, ensure_ascii=False))
