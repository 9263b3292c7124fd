"""Options that several commands have, and the kinds of values they take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from m3edge.encoder import Encoder
from m3edge.index import Index
from m3edge.session import PROVIDERS

DEFAULT = "default: %(default)s"  # for a help text to end with


def add_session_options(parser: argparse.ArgumentParser, *, cache: bool = True) -> None:
    """How the model is run; without `cache` for commands that measure how it starts."""
    parser.add_argument(
        "--provider",
        default="auto",
        help=f"auto, {', '.join(PROVIDERS)}, openvino:GPU, openvino:NPU, cuda:1; {DEFAULT}",
    )
    if cache:
        parser.add_argument(
            "--cache", type=Path, metavar="FOLDER", help="keeps OpenVINO's compiled models for next time"
        )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads; by default all that are allowed")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def add_model_option(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    """The model that belongs to an index."""
    parser.add_argument(
        "--model", type=Path, metavar="MODEL", help=f"model folder{purpose}; by default the one it was built with"
    )


def positive(value: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError for anything else."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {value!r}")
    return int(value)


def load_encoder(options: argparse.Namespace, model: Path) -> Encoder:
    """The model as the session options want it run."""
    return Encoder.load(model, options.provider, n_threads=options.threads, cache=options.cache)


def noted_model(index_folder: Path) -> Path:
    """The model folder that `m3edge index` noted in an index. Raises ValueError without such a note or folder."""
    with Index.open(index_folder) as index:
        noted = index.note("model_folder")
    if noted is None:
        raise ValueError(f"{index_folder} does not say where its model folder is; name it with --model")
    if not Path(noted).is_dir():
        raise ValueError(f"{index_folder}: its model folder, {noted}, is not there any more; name another with --model")
    return Path(noted)


def some_of(names: Collection[str]) -> Callable[[str], list[str]]:
    """The type of an argument that takes some of these names, joined by commas."""

    def chosen(value: str) -> list[str]:
        found = value.split(",")
        if not set(found) <= set(names):
            raise argparse.ArgumentTypeError(f"expected some of {','.join(names)}, got {value!r}")
        return found

    return chosen
