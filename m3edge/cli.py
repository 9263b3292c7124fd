"""The `m3edge` command: encode texts, build and search an index, look into a folder, measure a model."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m3edge.bench.commands import add_commands, noted_model
from m3edge.encoder import HEADS, Encoder
from m3edge.errors import FormatError, M3EdgeError
from m3edge.index import Document, Hit, Index
from m3edge.index.sparse import LEXICAL
from m3edge.index.store import FILE_NAME as STORE_FILE
from m3edge.index.tokens import CODECS
from m3edge.jsonl import joined_text, read_jsonl, required_string
from m3edge.kernels import DESCRIPTION as KERNELS
from m3edge.model_folder import MANIFEST, PRESETS, read_model_folder
from m3edge.passages import split_passages
from m3edge.session import PROVIDERS

_TEXT_ENDINGS = frozenset({".txt", ".md", ".rst", ".text", ".adoc", ".tex", ".html", ".htm", ".csv", ".log"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for an error that is said on stderr, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except (M3EdgeError, OSError, ValueError, TypeError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
            return 1
        print(f"m3edge: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("m3edge: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m3edge", description="Dense, sparse and multi-vector search with M3-Embedding models, without PyTorch."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    encode = commands.add_parser("encode", help="print the vectors of texts, one JSON object a line")
    encode.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    encode.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none, or -, reads one text a line from stdin")
    encode.add_argument("--as", dest="kind", choices=("query", "passage", "plain"), default="passage", help=_DEFAULT)
    encode.add_argument("--heads", type=_heads, default=list(HEADS), metavar="A,B", help="of dense,sparse,tokens; all")
    _add_session_options(encode)
    encode.set_defaults(run=_encode)

    index = commands.add_parser("index", help="add text files, folders and .jsonl files to an index")
    index.add_argument("index", type=Path, metavar="INDEX", help="index folder; made when it is not there")
    index.add_argument("--model", type=Path, required=True, metavar="MODEL", help="model folder")
    index.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="text file, folder, or .jsonl with _id, text"
    )
    index.add_argument("--passage-tokens", type=int, metavar="N", help="longest passage; by default the model's limit")
    index.add_argument(
        "--token-codec", choices=CODECS, default="int8", help=f"how a new index keeps token vectors; {_DEFAULT}"
    )
    _add_session_options(index)
    index.set_defaults(run=_index)

    search = commands.add_parser("search", help="search an index")
    search.add_argument("index", type=Path, metavar="INDEX", help="index folder")
    search.add_argument("query", metavar="QUERY")
    search.add_argument(
        "--model", type=Path, metavar="MODEL", help="model folder; by default the one it was built with"
    )
    search.add_argument("-k", type=int, default=10, help=f"how many hits; {_DEFAULT}")
    search.add_argument(
        "--weights",
        type=_weights,
        default="general",
        help=f"a preset ({', '.join(PRESETS)}) or three numbers DENSE,SPARSE,TOKENS; {_DEFAULT}",
    )
    search.add_argument(
        "--lexical",
        choices=LEXICAL,
        default="m3",
        help=f"how the sparse part scores: learned, also rare, BM25; {_DEFAULT}",
    )
    search.add_argument("--explain", action="store_true", help="say which tokens made each hit score")
    search.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    _add_session_options(search)
    search.set_defaults(run=_search)

    info = commands.add_parser("info", help="describe a model folder or an index folder, and check it")
    info.add_argument("path", type=Path, metavar="PATH")
    info.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    info.set_defaults(run=_info)

    evaluate = commands.add_parser("eval", help="measure retrieval quality on a data set in the BEIR layout")
    evaluate.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    evaluate.add_argument("data", type=Path, metavar="BEIR_FOLDER", help="corpus.jsonl, queries.jsonl, qrels/test.tsv")
    evaluate.add_argument("--queries", type=int, metavar="N", help="only the first N judged queries")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    _add_session_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    add_commands(commands)  # bench and tune
    return parser


_DEFAULT = "default: %(default)s"


def _add_session_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--provider", choices=("auto", *PROVIDERS), default="auto", help=_DEFAULT)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; by default all this process may use")


def _heads(value: str) -> list[str]:
    heads = value.split(",")
    if not set(heads) <= set(HEADS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(HEADS)}, got {value!r}")
    return heads


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


def _load(options: argparse.Namespace, model: Path) -> Encoder:
    return Encoder.load(model, options.provider, n_threads=options.threads)


# encode


def _encode(options: argparse.Namespace) -> None:
    from_stdin = options.texts in ([], ["-"])
    texts = [line.rstrip("\n") for line in sys.stdin] if from_stdin else options.texts
    encoder = _load(options, options.model)
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


# index


def _index(options: argparse.Namespace) -> None:
    for path in options.paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    encoder = _load(options, options.model)
    is_new = not options.index.exists() or not any(options.index.iterdir())
    index = (
        Index.create(options.index, encoder, token_codec=options.token_codec)
        if is_new
        else Index.open(options.index, encoder, progress=None)
    )
    try:
        with index:
            counts: dict[str, int] = {}
            documents = _read_documents(options.paths, encoder, options.passage_tokens, counts)
            report = index.upsert(documents, progress=None)
            index.delete(_left_over_passages(index, counts))
            index.set_note("model_folder", str(options.model.resolve()))  # so that `search` finds it
            print(f"{report.added} passages added, {len(index)} in the index {options.index}")
    except BaseException:
        if is_new:
            shutil.rmtree(options.index)
        raise


def _read_documents(
    paths: Sequence[Path], encoder: Encoder, passage_tokens: int | None, counts: dict[str, int]
) -> Iterator[Document]:
    """Every passage of every document under the paths, in order; metadata say of which document and where in it.

    counts: filled with the number of passages of each document
    """
    for path in paths:
        for id_, text, metadata in _read_path(path):
            passages = split_passages(text, encoder, passage_tokens)
            counts[id_] = len(passages)
            for number, (start, end) in enumerate(passages):
                place = {"document": id_, "start": start, "end": end, "line": text.count("\n", 0, start) + 1}
                yield Document(_passage_id(id_, number, len(passages)), text[start:end], {**metadata, **place})


def _passage_id(id_: str, number: int, count: int) -> str:
    return id_ if count == 1 else f"{id_}#{number}"


def _left_over_passages(index: Index, counts: dict[str, int]) -> list[str]:
    """Ids of passages that a document had when it was indexed before, and no longer has."""
    left_over = []
    for id_, count in counts.items():
        if count > 1 and id_ in index:
            left_over.append(id_)
        number = count if count > 1 else 0
        while (passage_id := f"{id_}#{number}") in index:
            left_over.append(passage_id)
            number += 1
    return left_over


def _read_path(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if path.is_dir():
        for child in sorted(path.rglob("*")):
            if child.is_file() and (child.suffix.lower() in _TEXT_ENDINGS or child.suffix == ".jsonl"):
                yield from _read_path(child)
    elif path.suffix == ".jsonl":
        for where, entry in read_jsonl(path):
            known = ("_id", "title", "text", "metadata")
            extra = {key: value for key, value in entry.items() if key not in known}
            metadata = entry.get("metadata") or {}
            if not isinstance(metadata, dict):
                raise FormatError(f"{where}: expected an object 'metadata', got {metadata!r}")
            title = {"title": entry["title"]} if entry.get("title") else {}
            yield required_string(where, entry, "_id"), joined_text(where, entry), {**title, **extra, **metadata}
    else:
        # A byte that is no UTF-8 must not cost the rest of a folder: it becomes U+FFFD.
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        if text.strip():
            yield str(path), text, {}


# search


def _search(options: argparse.Namespace) -> None:
    folder = options.model or noted_model(options.index)
    encoder = _load(options, folder)
    with Index.open(options.index, encoder, progress=None) as index:
        hits = index.search(
            options.query, options.k, weights=options.weights, lexical=options.lexical, explain=options.explain
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
    line = f", line {hit.metadata['line']}" if "line" in hit.metadata and "document" in hit.metadata else ""
    text = " ".join(hit.text.split())
    beginning = text if len(text) <= width else text[: width - 1] + "…"
    return f"{rank:3}. {hit.score:.3f}  ({parts})  {hit.metadata.get('document', hit.id)}{line}\n      {beginning}"


def _as_json(hit: Hit) -> dict[str, Any]:
    result = {**hit._asdict(), "scores": hit.scores._asdict()}
    explanation = result.pop("explanation")
    if explanation is not None:
        result["explanation"] = {
            name: [item._asdict() for item in items] for name, items in explanation._asdict().items()
        }
    return result


# info


def _info(options: argparse.Namespace) -> None:
    if (options.path / MANIFEST).is_file():
        description = _describe_model(options.path)
    elif (options.path / STORE_FILE).is_file():
        description = _describe_index(options.path)
    else:
        raise FormatError(f"{options.path}: neither a model folder (no {MANIFEST}) nor an index (no {STORE_FILE})")
    if options.json:
        print(json.dumps(description, ensure_ascii=False))
        return
    for key, value in description.items():
        print(f"{key:16} {json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value}")


def _describe_model(folder: Path) -> dict[str, Any]:
    info = read_model_folder(folder)
    return {
        "kind": "model folder",
        "name": info.name,
        "source": info.source,
        "revision": info.revision,
        "fingerprint": info.fingerprint,
        "precision": info.precision,
        "dense_dim": info.dense_dim,
        "token_dim": info.token_dim,
        "pooling": info.pooling,
        "query_prefix": info.query_prefix,
        "passage_prefix": info.passage_prefix,
        "max_length": info.max_length,
        "presets": {name: list(weights) for name, weights in info.presets.items()},
        "parity": info.parity,
        "size_bytes": _folder_size(folder),
        "checksums": "all files match",
        "kernels": KERNELS,
    }


def _describe_index(folder: Path) -> dict[str, Any]:
    with Index.open(folder) as index:
        index.check()
        return {
            "kind": "index",
            "documents": len(index),
            "model": index.model,
            "token_codec": index.token_codec,
            "token_pooling": index.token_pooling,
            "model_folder": index.note("model_folder"),
            "size_bytes": _folder_size(folder),
            "kernels": KERNELS,
            "checksums": "all token vectors match",
        }


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


# eval


def _evaluate(options: argparse.Namespace) -> None:
    from m3edge.evaluation import METRICS, evaluate, read_beir

    if options.queries is not None and options.queries < 1:
        raise ValueError(f"--queries must be at least 1, got {options.queries}")
    dataset = read_beir(options.data, n_queries=options.queries)
    result = evaluate(_load(options, options.model), dataset, progress=None)
    if options.json:
        print(json.dumps(result.to_json(), ensure_ascii=False))
        return
    print(f"{result.dataset}: {result.documents} documents, {result.queries} queries")
    print(f"{'':14}" + "".join(f"{name:>10}" for name in METRICS))
    for mode, values in result.modes.items():
        print(f"{mode:14}" + "".join(f"{values[name]:10.4f}" for name in METRICS))


if __name__ == "__main__":
    sys.exit(main())
