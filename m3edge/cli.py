"""The `m3edge` command: encode texts, build and search an index, look into a folder, measure a model."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from m3edge.bench.commands import add_commands, noted_model
from m3edge.encoder import HEADS, Encoder
from m3edge.errors import FormatError, M3EdgeError
from m3edge.index import CheckReport, Document, Hit, Index
from m3edge.index.check import BACKUP, ENCODE, REBUILD, check_index
from m3edge.index.sparse import LEXICAL
from m3edge.index.store import FILE_NAME as STORE_FILE
from m3edge.index.store import Store
from m3edge.index.tokens import CODECS
from m3edge.jsonl import joined_text, read_jsonl, required_string
from m3edge.kernels import DESCRIPTION as KERNELS
from m3edge.model_folder import MANIFEST, PRESETS, read_model_folder
from m3edge.passages import split_passages
from m3edge.progress import progress_bar
from m3edge.session import PROVIDERS, open_session

_TEXT_ENDINGS = frozenset({".txt", ".md", ".rst", ".text", ".adoc", ".tex", ".html", ".htm", ".csv", ".log"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0; 1 for an error, said on stderr, or for damage; 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
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
    return code or 0


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
    index.add_argument(
        "--token-pooling",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help=f"a new index merges a passage's token vectors into a half or a third as many; {_DEFAULT}",
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
    search.add_argument(
        "--filter",
        type=_json,
        metavar="JSON",
        help="""what metadata must fulfil, such as '{"year": {"$gte": 2020}}'; see m3edge/index/filters.py""",
    )
    search.add_argument("--explain", action="store_true", help="say which tokens made each hit score")
    search.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    _add_session_options(search)
    search.set_defaults(run=_search)

    info = commands.add_parser("info", help="describe a model folder or an index folder, and check it")
    info.add_argument("path", type=Path, metavar="PATH")
    info.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="compare an index with its checksums; exit code 1 for damage")
    check.add_argument("index", type=Path, metavar="INDEX", help="index folder")
    check.add_argument("--repair", action="store_true", help="make again what can be made from whole documents")
    check.add_argument(
        "--model", type=Path, metavar="MODEL", help="model folder to repair with; by default the one it was built with"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    _add_session_options(check)
    check.set_defaults(run=_check)

    compact = commands.add_parser("compact", help="give back the room of an index's deleted documents")
    compact.add_argument("index", type=Path, metavar="INDEX", help="index folder")
    compact.set_defaults(run=_compact)

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
    parser.add_argument(
        "--provider", default="auto", help=f"auto, {', '.join(PROVIDERS)}, openvino:GPU, openvino:NPU; {_DEFAULT}"
    )
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keeps OpenVINO's compiled models for next time")
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


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {value!r} ({error})") from error


def _load(options: argparse.Namespace, model: Path) -> Encoder:
    return Encoder.load(model, options.provider, n_threads=options.threads, cache=options.cache)


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


_COMMIT_PASSAGES = 256  # what a kill can cost, at most


class _FileDocument(NamedTuple):
    """A document of the files to be indexed, cut into passages."""

    id: str
    passages: list[Document]


def _index(options: argparse.Namespace) -> None:
    for path in options.paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    encoder = _load(options, options.model)
    is_new = not options.index.exists() or not any(options.index.iterdir())
    index = (
        Index.create(options.index, encoder, token_codec=options.token_codec, token_pooling=options.token_pooling)
        if is_new
        else Index.open(options.index, encoder, progress=None)
    )
    try:
        with index, progress_bar(None, "passage", "indexing", None) as bar:
            if index.note("model_folder") != str(options.model.resolve()):
                index.set_note("model_folder", str(options.model.resolve()))  # so that `search` finds it
            added = seen = 0
            for batch in _batches(_read_documents(options.paths, encoder, options.passage_tokens)):
                passages = [passage for document in batch for passage in document.passages]
                new = [passage for passage in passages if index.get(passage.id) != passage]
                left_over = [id_ for document in batch for id_ in _left_over_passages(index, document)]
                if new or left_over:
                    with index.transaction():
                        added += index.upsert(new).added
                        index.delete(left_over)
                seen += len(passages)
                bar.update(len(passages))
            unchanged = f", {seen - added} unchanged" if seen > added else ""
            print(f"{added} passages added{unchanged}, {len(index)} in the index {options.index}")
    except BaseException:
        if is_new and _is_empty(options.index):
            shutil.rmtree(options.index)
        raise


def _is_empty(folder: Path) -> bool:
    with Index.open(folder) as index:
        return len(index) == 0


def _batches(documents: Iterator[_FileDocument]) -> Iterator[list[_FileDocument]]:
    """Whole documents, until a batch has enough passages to be committed. Raises ValueError for an id that came twice:
    of two documents only one can have it."""
    batch: list[_FileDocument] = []
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise ValueError(f"id {document.id!r} came twice; every document needs an _id, or a path, of its own")
        seen.add(document.id)
        batch.append(document)
        if sum(len(document.passages) for document in batch) >= _COMMIT_PASSAGES:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_documents(paths: Sequence[Path], encoder: Encoder, passage_tokens: int | None) -> Iterator[_FileDocument]:
    """Every document under the paths, in order; its passages' metadata say where in it they stand."""
    for path in paths:
        for id_, text, metadata in _read_path(path):
            places = split_passages(text, encoder, passage_tokens)
            passages = []
            for number, (start, end) in enumerate(places):
                place = {"document": id_, "start": start, "end": end, "line": text.count("\n", 0, start) + 1}
                passages.append(Document(_passage_id(id_, number, len(places)), text[start:end], {**metadata, **place}))
            yield _FileDocument(id_, passages)


def _passage_id(id_: str, number: int, count: int) -> str:
    return id_ if count == 1 else f"{id_}#{number}"


def _left_over_passages(index: Index, document: _FileDocument) -> list[str]:
    """Ids of passages that a document had when it was indexed before, and no longer has."""
    count = len(document.passages)
    left_over = [document.id] if count > 1 and document.id in index else []
    number = count if count > 1 else 0
    while (passage_id := f"{document.id}#{number}") in index:
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
        "provider": _running_provider(folder),
        "kernels": KERNELS,
    }


def _running_provider(folder: Path) -> str:
    """What "auto" takes here, found out by loading the graph."""
    try:
        return open_session(folder).provider
    except (M3EdgeError, ImportError) as error:
        return f"none: {error}"


def _describe_index(folder: Path) -> dict[str, Any]:
    with Index.open(folder) as index:
        report = index.check()
        if not report.sound:
            raise FormatError(f"{report.problems[0].file}: {report.problems[0].what}; see `m3edge check {folder}`")
        return {
            "kind": "index",
            "documents": len(index),
            "model": index.model,
            "dense": index.dense_mode,
            "token_codec": index.token_codec,
            "token_pooling": index.token_pooling,
            "model_folder": index.note("model_folder"),
            "size_bytes": _folder_size(folder),
            "kernels": KERNELS,
            "checksums": "all files match",
        }


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


# check, compact


def _check(options: argparse.Namespace) -> int:
    report = check_index(options.index, progress=None)
    if options.repair and not report.sound:
        report = Index.repair(options.index, _repairing_encoder(options, report), progress=None)
    if options.json:
        problems = [problem._asdict() for problem in report.problems]
        print(json.dumps({"sound": report.sound, "documents": report.documents, "problems": problems}))
        return 0 if report.sound else 1
    for problem in report.problems:
        print(f"{problem.file}: {problem.what}{_named(problem.documents)}\n    {_REMEDIES[problem.remedy]}")
    print(f"{options.index}: {'sound' if report.sound else 'damaged'}, {report.documents} documents")
    return 0 if report.sound else 1


_REMEDIES = {
    REBUILD: "--repair makes it again from the documents",
    ENCODE: "--repair encodes these documents again; needs the model (--model)",
    BACKUP: "restore a backup, or build the index again",
}


def _repairing_encoder(options: argparse.Namespace, report: CheckReport) -> Encoder | None:
    """The encoder, where documents are to be encoded again and the model is at hand."""
    if not any(problem.remedy == ENCODE for problem in report.problems):
        return None
    folder = options.model
    if folder is None:
        with closing(Store(options.index).snapshot()) as snapshot:
            noted = snapshot.note("model_folder")
        folder = Path(noted) if noted and Path(noted).is_dir() else None
    return _load(options, folder) if folder is not None else None


def _named(ids: Sequence[str], most: int = 5) -> str:
    if not ids:
        return ""
    return f" ({len(ids)} documents: {', '.join(ids[:most])}{', …' if len(ids) > most else ''})"


def _compact(options: argparse.Namespace) -> None:
    with Index.open(options.index, progress=None) as index:
        report = index.compact(progress=None)
        print(
            f"{options.index}: {len(index)} documents, {report.bytes_before:,} bytes before, {report.bytes_after:,} now"
        )


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
