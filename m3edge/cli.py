"""The `m3edge` command: encode texts, build and search an index, look into a folder, measure a model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from m3edge import __version__
from m3edge.commands import encoding, folders, indexing, measuring, searching
from m3edge.errors import M3EdgeError

_GROUPS = (encoding, indexing, searching, folders, measuring)  # in the order that --help shows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0; 1 for an error, said on stderr, or for damage; 2 for wrong usage."""
    options = _parsed(arguments)
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


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes the texts that stand before an option, none as well, and leaves those behind it.
    if (rest and not hasattr(options, "texts")) or any(argument.startswith("-") for argument in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.texts += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m3edge", description="Dense, sparse and multi-vector search with M3-Embedding models, without PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"m3edge {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in _GROUPS:
        group.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
