"""`m3edge search`: the hits of one query, for people or as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from m3edge.commands.options import (
    DEFAULT,
    add_json_option,
    add_model_option,
    add_session_options,
    load_encoder,
    noted_model,
)
from m3edge.index import Hit, Index
from m3edge.index.sparse import LEXICAL
from m3edge.model_folder import PRESETS
from m3edge.passages import place_of


def add_commands(commands: Any) -> None:
    """Add `search` to the subparsers of the `m3edge` command."""
    search = commands.add_parser("search", help="search an index")
    search.add_argument("index", type=Path, metavar="INDEX", help="index folder")
    search.add_argument("query", metavar="QUERY")
    add_model_option(search)
    search.add_argument("-k", type=int, default=10, help=f"how many hits; {DEFAULT}")
    search.add_argument(
        "--weights",
        type=_weights,
        default="general",
        help=f"a preset ({', '.join(PRESETS)}) or three numbers DENSE,SPARSE,TOKENS; {DEFAULT}",
    )
    search.add_argument(
        "--lexical",
        choices=LEXICAL,
        default="m3",
        help=f"how the sparse part scores: learned, also rare, BM25; {DEFAULT}",
    )
    search.add_argument(
        "--filter",
        type=_json,
        metavar="JSON",
        help="""what metadata must fulfil, such as '{"year": {"$gte": 2020}}'; see m3edge/index/filters.py""",
    )
    search.add_argument("--explain", action="store_true", help="say which tokens made each hit score")
    add_json_option(search)
    add_session_options(search)
    search.set_defaults(run=_search)


def _weights(value: str) -> str | list[float]:
    if value in PRESETS:
        return value
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PRESETS)} or three numbers, got {value!r}")
    return numbers


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {value!r} ({error})") from error


def _search(options: argparse.Namespace) -> None:
    folder = options.model or noted_model(options.index)
    encoder = load_encoder(options, folder)
    with Index.open(options.index, encoder, progress=None) as index:
        hits = index.search(
            options.query,
            options.k,
            weights=options.weights,
            filter=options.filter,
            lexical=options.lexical,
            explain=options.explain,
        )
    if options.json:
        print(json.dumps({"query": options.query, "hits": [_as_json(hit) for hit in hits]}, ensure_ascii=False))
        return
    for rank, hit in enumerate(hits, 1):
        print(format_hit(rank, hit))
        if hit.explanation is not None:
            shared = ", ".join(f"{item.token} {item.score:.3f}" for item in hit.explanation.shared[:8])
            matches = ", ".join(
                f"{m.query_token}→{m.passage_token} {m.similarity:.2f}" for m in hit.explanation.matches
            )
            print(f"      shared tokens: {shared or 'none'}\n      best matches:  {matches}")
    if not hits:
        print("nothing found")


def format_hit(rank: int, hit: Hit, width: int = 90) -> str:
    """One hit on two lines: rank, scores and id, then the beginning of its text."""
    parts = " ".join(
        f"{name} {'  –  ' if score is None else format(score, '.3f')}"
        for name, score in zip(("dense", "sparse", "tokens"), hit.scores, strict=True)
    )
    place = place_of(hit.id, hit.metadata)
    line = f", line {place['line']}" if "line" in place else ""
    text = " ".join(hit.text.split())
    beginning = text if len(text) <= width else text[: width - 1] + "…"
    return f"{rank:3}. {hit.score:.3f}  ({parts})  {place['document']}{line}\n      {beginning}"


def _as_json(hit: Hit) -> dict[str, Any]:
    result = {**hit._asdict(), "scores": hit.scores._asdict()}
    explanation = result.pop("explanation")
    if explanation is not None:
        result["explanation"] = {
            name: [item._asdict() for item in items] for name, items in explanation._asdict().items()
        }
    return result
