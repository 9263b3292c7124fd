"""The command `m3edge-export`: mini, onnx, train.

An error that is the user's to fix is one line on stderr and exit code 1; a wrong command line is exit code 2.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from m3edge.errors import M3EdgeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # torch and transformers talk to their own developers
    try:
        options.run(options)
    except (M3EdgeError, OSError, ImportError, ValueError) as error:
        print(f"m3edge-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("m3edge-export: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="m3edge-export", description="From a PyTorch M3 model to a model folder.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    mini = commands.add_parser("mini", help="write the mini model's checkpoint")
    mini.add_argument("out", type=Path, metavar="OUT", help="the new checkpoint folder")
    mini.set_defaults(run=_mini)

    onnx = commands.add_parser("onnx", help="export a checkpoint to a model folder")
    onnx.add_argument("source", metavar="SOURCE", help="a checkpoint folder, or a hub id such as BAAI/bge-m3")
    onnx.add_argument("out", type=Path, metavar="OUT", help="the new model folder")
    onnx.add_argument("--precision", choices=["fp32"], default="fp32")
    onnx.add_argument("--name", help="the model's name in its folder (default: the checkpoint's)")
    onnx.set_defaults(run=_onnx)

    train = commands.add_parser("train", help="train a checkpoint's heads on pairs of query and passage")
    train.add_argument("source", metavar="SOURCE", help="a checkpoint folder or a hub id")
    train.add_argument("out", type=Path, metavar="OUT", help="the new checkpoint folder")
    train.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help=".jsonl or .jsonl.gz")
    train.add_argument("--stage", choices=["heads"], default="heads", help="what is trained")
    train.add_argument("--fresh-heads", action="store_true", help="forget the heads that the checkpoint has")
    train.add_argument("--passages", type=_positive, default=1000, help="at most so many from each file")
    train.add_argument("--max-length", type=_positive, default=256, help="tokens of a text")
    train.add_argument("--epochs", type=_positive, default=3)
    train.add_argument("--batch", type=_positive, default=32, help="queries a step")
    train.add_argument("--learning-rate", type=float, default=2e-4, help="of the token head")
    train.add_argument("--sparse-learning-rate", type=float, default=1e-3)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--save-heads", type=Path, metavar="FILE", help="also write the heads alone, as safetensors")
    train.set_defaults(run=_train)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


# The imports are late so that --help and usage errors need no PyTorch.


def _mini(options: argparse.Namespace) -> None:
    from m3edge_export.mini import write_mini

    write_mini(options.out)
    print(f"{options.out}: the mini model's checkpoint")


def _onnx(options: argparse.Namespace) -> None:
    from m3edge_export.export import export_onnx

    info = export_onnx(options.source, options.out, precision=options.precision, name=options.name)
    worst = max(value for name, value in info.parity.items() if name.startswith("max_abs"))
    print(f"{options.out}: {info.name} in {info.precision}, at most {worst:.1e} from the PyTorch model")


def _train(options: argparse.Namespace) -> None:
    from m3edge_export.training.heads import HeadTraining
    from m3edge_export.training.run import train_checkpoint

    train_checkpoint(
        options.source,
        options.out,
        options.data,
        HeadTraining(
            epochs=options.epochs,
            batch=options.batch,
            learning_rate=options.learning_rate,
            sparse_learning_rate=options.sparse_learning_rate,
            seed=options.seed,
        ),
        fresh_heads=options.fresh_heads,
        n_passages=options.passages,
        max_length=options.max_length,
        heads_file=options.save_heads,
        log=lambda line: print(line, file=sys.stderr),
    )
    print(f"{options.out}: the trained checkpoint")


if __name__ == "__main__":
    sys.exit(main())
