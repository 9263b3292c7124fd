"""`m3edge eval`, `bench` and `tune`: a model on judged queries, models side by side, the weights of an index."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from m3edge.commands.options import (
    DEFAULT,
    add_json_option,
    add_model_option,
    add_session_options,
    load_encoder,
    noted_model,
    positive,
    some_of,
)
from m3edge.files import write_atomically
from m3edge.index import Index
from m3edge.index.sparse import LEXICAL
from m3edge.index.tokens import CODECS


def add_commands(commands: Any) -> None:
    """Add all three to the subparsers of the `m3edge` command."""
    evaluate = commands.add_parser("eval", help="measure retrieval quality on a data set in the BEIR layout")
    evaluate.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    evaluate.add_argument("data", type=Path, metavar="BEIR_FOLDER", help="corpus, queries and qrels")
    _add_query_options(evaluate)
    add_json_option(evaluate)
    add_session_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    bench = commands.add_parser("bench", help="measure model folders: quality, speed, size, memory, and draw it")
    bench.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="model folders to compare")
    _add_data_options(bench)
    add_session_options(bench, cache=False)
    bench.add_argument("--docs", type=positive, metavar="N", help="only the judged documents and the first others, N")
    bench.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help=f"for results; {DEFAULT}")
    bench.add_argument("--rounds", type=positive, default=3, metavar="N", help=f"of measuring speed; {DEFAULT}")
    bench.add_argument("--token-codec", choices=CODECS, default="int8", help=f"of the indexes; {DEFAULT}")
    bench.set_defaults(run=_bench)

    tune = commands.add_parser("tune", help="find the weights that rank your judged queries best, and if it matters")
    tune.add_argument("index", type=Path, metavar="INDEX", help="index folder, built from the data set's corpus")
    _add_data_options(tune)
    add_session_options(tune)
    add_model_option(tune)
    tune.add_argument(
        "--lexical",
        type=some_of(LEXICAL),
        default=list(LEXICAL),
        metavar="A,B",
        help=f"that compete, of {','.join(LEXICAL)}",
    )
    tune.add_argument("--metric", default="nDCG@10", help=f"such as R@100, RR@10, P@3 or AP; {DEFAULT}")
    tune.add_argument("--folds", type=positive, default=5, metavar="N", help=f"of the cross-validation; {DEFAULT}")
    add_json_option(tune)
    tune.set_defaults(run=_tune)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="BEIR_FOLDER", help="corpus, queries and qrels")
    _add_query_options(parser)


def _add_query_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="test", help=f"which qrels; {DEFAULT}")
    parser.add_argument("--queries", type=positive, metavar="N", help="only the first N judged queries")


def _evaluate(options: argparse.Namespace) -> None:
    from m3edge.evaluation import METRICS, evaluate, read_beir

    dataset = read_beir(options.data, split=options.split, n_queries=options.queries)
    result = evaluate(load_encoder(options, options.model), dataset, progress=None)
    if options.json:
        print(json.dumps(result.to_json(), ensure_ascii=False))
        return
    print(f"{result.dataset}: {result.documents} documents, {result.queries} queries")
    print(f"{'':14}" + "".join(f"{name:>10}" for name in METRICS))
    for mode, values in result.modes.items():
        print(f"{mode:14}" + "".join(f"{values[name]:10.4f}" for name in METRICS))


def _bench(options: argparse.Namespace) -> None:
    from m3edge.bench.plots import write_plots
    from m3edge.bench.report import markdown
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
    from m3edge.evaluation import parse_metric, read_beir
    from m3edge.tuning import tune

    parse_metric(options.metric)  # rather now than after the model is loaded
    dataset = read_beir(options.data, split=options.split, n_queries=options.queries)
    folder = options.model or noted_model(options.index)
    with Index.open(options.index, load_encoder(options, folder), progress=None) as index:
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
