"""`m3edge info`, `check` and `compact`: look into a folder, compare it with its checksums, give back room."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from m3edge.commands.options import add_json_option, add_model_option, add_session_options, load_encoder
from m3edge.encoder import Encoder
from m3edge.errors import FormatError, M3EdgeError
from m3edge.index import CheckReport, Index
from m3edge.index.check import BACKUP, ENCODE, REBUILD, check_index
from m3edge.index.store import FILE_NAME as STORE_FILE
from m3edge.index.store import Store
from m3edge.kernels import DESCRIPTION as KERNELS
from m3edge.model_folder import MANIFEST, read_model_folder
from m3edge.session import open_session

_REMEDIES = {
    REBUILD: "--repair makes it again from the documents",
    ENCODE: "--repair encodes these documents again; needs the model (--model)",
    BACKUP: "restore a backup, or build the index again",
}


def add_commands(commands: Any) -> None:
    """Add all three to the subparsers of the `m3edge` command."""
    info = commands.add_parser("info", help="describe a model folder or an index folder, and check it")
    info.add_argument("path", type=Path, metavar="PATH")
    add_json_option(info)
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="compare an index with its checksums; exit code 1 for damage")
    check.add_argument("index", type=Path, metavar="INDEX", help="index folder")
    check.add_argument("--repair", action="store_true", help="make again what can be made from whole documents")
    add_model_option(check, " to repair with")
    add_json_option(check)
    add_session_options(check)
    check.set_defaults(run=_check)

    compact = commands.add_parser("compact", help="give back the room of an index's deleted documents")
    compact.add_argument("index", type=Path, metavar="INDEX", help="index folder")
    compact.set_defaults(run=_compact)


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


def _repairing_encoder(options: argparse.Namespace, report: CheckReport) -> Encoder | None:
    """The encoder, where documents are to be encoded again and the model is at hand."""
    if not any(problem.remedy == ENCODE for problem in report.problems):
        return None
    folder = options.model
    if folder is None:
        with closing(Store(options.index).snapshot()) as snapshot:
            noted = snapshot.note("model_folder")
        folder = Path(noted) if noted and Path(noted).is_dir() else None
    return load_encoder(options, folder) if folder is not None else None


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
