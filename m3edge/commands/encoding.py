"""`m3edge encode`: the vectors of texts, as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from m3edge.commands.options import DEFAULT, add_session_options, load_encoder, some_of
from m3edge.embeddings import Embeddings
from m3edge.encoder import HEADS
from m3edge.progress import progress_bar

_BLOCK_TEXTS = 256  # encoded and printed together: the first lines appear while stdin still brings texts


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
    texts = (line.rstrip("\r\n") for line in sys.stdin) if from_stdin else iter(options.texts)
    encoder = load_encoder(options, options.model)
    verb = {"query": encoder.encode_queries, "passage": encoder.encode_passages, "plain": encoder.encode}[options.kind]
    total = None if from_stdin else len(options.texts)
    show = False if sys.stdout.isatty() else None  # among the lines on a screen a bar would be torn
    with progress_bar(total, "text", "encoding", show) as bar:
        while block := list(islice(texts, _BLOCK_TEXTS)):
            for row in _as_json(block, verb(block, heads=options.heads)):
                print(json.dumps(row, ensure_ascii=False))
            sys.stdout.flush()
            bar.update(len(block))


def _as_json(texts: Sequence[str], embeddings: Embeddings) -> Iterator[dict[str, Any]]:
    vectors = embeddings.to_flagembedding()
    for i, text in enumerate(texts):
        row: dict[str, Any] = {"text": text}
        if embeddings.truncated[i]:
            row["truncated"] = True
        if vectors["dense_vecs"] is not None:
            row["dense"] = vectors["dense_vecs"][i].tolist()
        if vectors["lexical_weights"] is not None:
            row["sparse"] = vectors["lexical_weights"][i]
        if vectors["colbert_vecs"] is not None:
            row["tokens"] = vectors["colbert_vecs"][i].tolist()
        yield row
