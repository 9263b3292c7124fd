"""The command `m3edge-export`: mini, random, onnx, report, train.

An error that is the user's to fix is one line on stderr and exit code 1; a wrong command line is exit code 2.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from m3edge.errors import M3EdgeError
from m3edge.model_folder import PRECISIONS

if TYPE_CHECKING:
    from m3edge_export.training.data import DataFile


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # torch and transformers talk to their own developers
    try:
        with _stopped_by_signals():
            options.run(options)
    except ModuleNotFoundError as error:
        print(f"m3edge-export: {error}; pip install 'm3edge[export]'", file=sys.stderr)
        return 1
    except (M3EdgeError, OSError, ImportError, ValueError) as error:
        print(f"m3edge-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"m3edge-export: interrupted; {options.after_interrupt}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    return 0


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that it can remove what it has begun."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    numbers: list[int] = []
    if threading.current_thread() is threading.main_thread():  # only there a handler can be set
        known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has one
        # Under nohup a SIGHUP is ignored and is to stay so.
        numbers = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="m3edge-export", description="From a PyTorch M3 model to a model folder.")
    parser.set_defaults(after_interrupt="nothing was written")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    mini = commands.add_parser("mini", help="write the mini model's checkpoint")
    mini.add_argument("out", type=Path, metavar="OUT", help="the new checkpoint folder")
    mini.set_defaults(run=_mini)

    onnx = commands.add_parser("onnx", help="export a checkpoint to a model folder")
    onnx.add_argument("source", metavar="SOURCE", help="a checkpoint folder, or a hub id such as BAAI/bge-m3")
    onnx.add_argument(
        "out", type=Path, metavar="OUT", help="the new model folder; with `all`, what their names begin with"
    )
    onnx.add_argument(
        "--precision",
        choices=[*PRECISIONS, "all"],
        default="int8",
        help="fp16 for GPUs, int8 for CPUs, int4 the smallest, fp32 to compare with (default: %(default)s)",
    )
    onnx.add_argument("--name", help="the model's name in its folder (default: the checkpoint's)")
    onnx.add_argument(
        "--calibration", type=Path, metavar="FILE", help="texts like yours, one a line (default: our own, 34 languages)"
    )
    onnx.add_argument(
        "--openvino", action="store_true", help="with int8: also a graph with static scales, which OpenVINO runs"
    )
    onnx.set_defaults(run=_onnx)

    random = commands.add_parser("random", help="write a checkpoint with random weights, to measure speed and memory")
    random.add_argument("out", type=Path, metavar="OUT", help="the new checkpoint folder")
    random.add_argument("--like", choices=["bge-m3"], default="bge-m3", help="whose shape it has")
    random.add_argument("--seed", type=int, default=0)
    random.set_defaults(run=_random)

    report = commands.add_parser("report", help="compare precisions and engines: size, start, memory, parity, quality")
    report.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="model folders, one of them in fp32")
    report.add_argument("--texts", type=Path, metavar="FILE", help="texts to compare on (default: calibration's own)")
    report.add_argument("--data", type=Path, metavar="BEIR_FOLDER", help="adds nDCG@10 on this data set")
    report.add_argument("--queries", type=_positive, metavar="N", help="only the first N judged queries")
    report.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    report.set_defaults(run=_report)

    train = commands.add_parser("train", help="train a checkpoint on pairs of query and passage")
    train.add_argument("source", metavar="SOURCE", help="a checkpoint folder or a hub id")
    train.add_argument("out", type=Path, metavar="OUT", help="the new checkpoint folder")
    train.add_argument(
        "--data", nargs="+", required=True, metavar="FILE[:N]", help=".jsonl or .jsonl.gz; at most N of its passages"
    )
    train.add_argument("--stage", choices=["heads", "lora", "full"], default="heads", help="what learns")
    train.add_argument("--fresh-heads", action="store_true", help="forget the heads that the checkpoint has")
    train.add_argument(
        "--passages", type=_positive, default=1000, metavar="N", help="of files without :N (%(default)s)"
    )
    train.add_argument("--max-length", type=_positive, default=256, help="tokens of a text (default: %(default)s)")
    train.add_argument("--epochs", type=_positive, default=1)
    train.add_argument("--steps", type=_positive, help="instead of whole epochs")
    train.add_argument("--batch", type=_positive, default=32, help="passages a step (default: %(default)s)")
    train.add_argument(
        "--batch-tokens", type=_positive, default=8192, help="passages times longest one, at most (%(default)s)"
    )
    train.add_argument("--cache-gradients", action="store_true", help="for batches larger than memory")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="of the heads (default: %(default)s)")
    train.add_argument("--encoder-rate", type=float, help="learning rate of the encoder (2e-4 for lora, 2e-5 for full)")
    train.add_argument("--rank", type=_positive, default=32, help="of the adapters (default: %(default)s)")
    train.add_argument("--keep", type=float, default=0.6, help="share of the start in the result (%(default)s)")
    train.add_argument("--negatives", type=int, default=0, help="hard negatives mined for each query")
    train.add_argument("--refresh", type=int, default=0, metavar="STEPS", help="mine again every so often")
    train.add_argument(
        "--guard",
        type=float,
        default=0.95,
        help="share of the right passage's score a negative may reach (%(default)s)",
    )
    train.add_argument(
        "--no-distillation", action="store_true", help="no part learns from the sum of all three: for comparison"
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    train.add_argument("--eval", type=Path, nargs="+", default=[], metavar="BEIR_FOLDER", help="measure nDCG@10 there")
    train.add_argument("--eval-queries", type=_positive, default=100, help="the first so many (default: %(default)s)")
    train.add_argument("--eval-every", type=int, default=0, metavar="STEPS", help="not only at the end")
    train.add_argument("--save-every", type=_positive, default=100, metavar="STEPS", help="what a kill can cost")
    train.add_argument("--save-deltas", type=Path, metavar="FILE", help="also write what changed as one small file")
    train.set_defaults(run=_train, after_interrupt="the same command goes on from the last saved step")
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
    from m3edge_export.export import export_precisions

    outs = {options.precision: options.out}
    if options.precision == "all":
        outs = {precision: options.out.with_name(f"{options.out.name}-{precision}") for precision in PRECISIONS}
    infos = export_precisions(
        options.source, outs, name=options.name, calibration=options.calibration, openvino=options.openvino
    )
    for precision, info in infos.items():
        cosine = info.parity["min_cosine"]
        print(f"{outs[precision]}: {info.name} in {precision}, cosine to the PyTorch model at least {cosine:.5f}")
        if "openvino_min_cosine" in info.parity:
            cosine = info.parity["openvino_min_cosine"]
            print(f"{outs[precision]}: on OpenVINO, whose scales are fixed, at least {cosine:.5f}")


def _random(options: argparse.Namespace) -> None:
    from m3edge_export.random_model import write_random

    write_random(options.out, like=options.like, seed=options.seed)
    print(f"{options.out}: random weights in the shape of {options.like}")


def _report(options: argparse.Namespace) -> None:
    from m3edge_export.calibrate import calibration_texts
    from m3edge_export.report import build_report, markdown

    texts = calibration_texts(options.texts)
    rows = build_report(options.models, texts, data=options.data, n_queries=options.queries)
    print(json.dumps(rows, indent=1) if options.json else markdown(rows))


def _train(options: argparse.Namespace) -> None:
    from m3edge.evaluation import read_beir
    from m3edge_export.training.losses import Objective
    from m3edge_export.training.run import Run, train_checkpoint
    from m3edge_export.training.trainer import Training

    names = {item.name for item in fields(Training)} & set(vars(options))
    objective = Objective(distillation=not options.no_distillation)
    config = Training(objective=objective, **{name: getattr(options, name) for name in names})
    run = Run(
        fresh_heads=options.fresh_heads,
        max_length=options.max_length,
        device=options.device,
        datasets=[read_beir(folder, n_queries=options.eval_queries) for folder in options.eval],
        evaluate_every=options.eval_every,
        save_every=options.save_every,
        deltas=options.save_deltas,
    )
    files = [_data_file(item, options.passages) for item in options.data]
    train_checkpoint(options.source, options.out, files, config, run, log=lambda line: print(line, file=sys.stderr))
    print(f"{options.out}: the trained checkpoint")


def _data_file(text: str, n_passages: int) -> DataFile:
    """FILE or FILE:N."""
    from m3edge_export.training.data import DataFile

    name, colon, number = text.rpartition(":")
    return DataFile(Path(name), int(number)) if colon and number.isdigit() else DataFile(Path(text), n_passages)


if __name__ == "__main__":
    sys.exit(main())
