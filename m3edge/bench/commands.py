"""The commands `m3edge bench` and `m3edge tune`: their options, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from m3edge.encoder import Encoder
from m3edge.files import write_atomically
from m3edge.index import Index
from m3edge.index.sparse import LEXICAL
from m3edge.index.tokens import CODECS
from m3edge.session import PROVIDERS

_DEFAULT = "default: %(default)s"


def add_commands(commands: Any) -> None:
    """Add both to the subparsers of the `m3edge` command."""
    bench = commands.add_parser("bench", help="measure model folders: quality, speed, size, memory, and draw it")
    bench.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="model folders to compare")
    _add_data_options(bench)
    bench.add_argument("--docs", type=_positive, metavar="N", help="only the judged documents and the first others, N")
    bench.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help=f"for results; {_DEFAULT}")
    bench.add_argument("--rounds", type=_positive, default=3, metavar="N", help=f"of measuring speed; {_DEFAULT}")
    bench.add_argument("--token-codec", choices=CODECS, default="int8", help=f"of the indexes; {_DEFAULT}")
    bench.set_defaults(run=_bench)

    tune = commands.add_parser("tune", help="find the weights that rank your judged queries best, and if it matters")
    tune.add_argument("index", type=Path, metavar="INDEX", help="index folder, built from the data set's corpus")
    _add_data_options(tune)
    tune.add_argument("--model", type=Path, metavar="MODEL", help="model folder; by default the one it was built with")
    tune.add_argument(
        "--lexical",
        type=_kinds,
        default=list(LEXICAL),
        metavar="A,B",
        help=f"that compete, of {','.join(LEXICAL)}",
    )
    tune.add_argument("--metric", default="nDCG@10", help=f"in ir-measures' spelling; {_DEFAULT}")
    tune.add_argument("--folds", type=_positive, default=5, metavar="N", help=f"of the cross-validation; {_DEFAULT}")
    tune.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    tune.set_defaults(run=_tune)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="BEIR_FOLDER", help="corpus, queries and qrels")
    parser.add_argument("--split", default="test", help=f"which qrels; {_DEFAULT}")
    parser.add_argument("--queries", type=_positive, metavar="N", help="only the first N judged queries")
    parser.add_argument("--provider", choices=("auto", *PROVIDERS), default="auto", help=_DEFAULT)
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads; by default all that are allowed")


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {value!r}")
    return int(value)


def _kinds(value: str) -> list[str]:
    kinds = value.split(",")
    if not set(kinds) <= set(LEXICAL):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(LEXICAL)}, got {value!r}")
    return kinds


def _bench(options: argparse.Namespace) -> None:
    from m3edge.bench.report import markdown, write_plots
    from m3edge.bench.run import BenchSettings, bench

    settings = BenchSettings(
        data=options.data,
        split=options.split,
        queries=options.queries,
        documents=options.docs,
        rounds=options.rounds,
        provider=options.provider,
        threads=options.threads,
        token_codec=options.token_codec,
    )
    report = bench(options.models, settings, options.out, say=_say)
    text = markdown(report)
    write_atomically(options.out / "bench.md", text.encode())
    print(text)
    try:
        write_plots(report, options.out)
    except ImportError as error:
        _say(f"no plots: {error}")
    _say(f"results are in {options.out}; its folder 'steps' holds the indexes and what an interrupted run needs")


def _tune(options: argparse.Namespace) -> None:
    from m3edge.evaluation import read_beir
    from m3edge.tuning import tune

    dataset = read_beir(options.data, split=options.split, n_queries=options.queries)
    folder = options.model or noted_model(options.index)
    encoder = Encoder.load(folder, options.provider, n_threads=options.threads)
    with Index.open(options.index, encoder, progress=None) as index:
        result = tune(
            index, dataset, lexical=options.lexical, metric=options.metric, folds=options.folds, progress=None
        )
    if options.json:
        print(json.dumps(result.to_json()))
        return
    print(f"{dataset.name}: {result.metric} of {result.queries} queries; weights are of dense, sparse, tokens")
    print(f"{'':24}{'weights':>16}{result.metric:>10}")
    print(f"{'default, m3':24}{_written(result.baseline.choice.weights):>16}{result.baseline.value:10.4f}")
    for item in result.by_lexical:
        print(f"{'best with ' + item.choice.lexical:24}{_written(item.choice.weights):>16}{item.value:10.4f}")
    print(f"{'cross-validated':24}{'':16}{result.validated:10.4f}")
    print(
        f"gain on queries that had no say: {result.gain:+.4f} "
        f"(95 % interval {result.low:+.4f} to {result.high:+.4f}, p = {result.p_value:.4f}, paired permutation test)"
    )
    if result.beyond_noise:
        best = result.best.choice
        print(f"beyond noise; search with: --weights {_written(best.weights)} --lexical {best.lexical}")
    else:
        print("not beyond noise: keep the default, or judge more queries")


def _written(weights: tuple[float, ...]) -> str:
    return ",".join(f"{weight:g}" for weight in weights)


def noted_model(index_folder: Path) -> Path:
    """The model folder that `m3edge index` noted in an index. Raises ValueError when there is no such note."""
    with Index.open(index_folder) as index:
        noted = index.note("model_folder")
    if noted is None:
        raise ValueError(f"{index_folder} does not say where its model folder is; name it with --model")
    return Path(noted)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
