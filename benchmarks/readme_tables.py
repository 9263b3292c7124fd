"""The numbers in README.md and benchmarks/README.md, made from the files in results/.

    python benchmarks/readme_tables.py           # writes them
    python benchmarks/readme_tables.py --check   # says whether they are what the files say; tests do the same

A made part stands between `<!-- made: NAME -->` and `<!-- end -->`; NAME is one of MADE. Where the file is not there it
says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import quality as quality_script
import tables
from machine import RESULTS, ROOT

from m3edge.bench.report import growth_table, parts_table, quality_table, speed_table, table
from m3edge.evaluation import MODES

FILES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
PEER_TASKS = ("encode", "maxsim", "dense", "search")
BENCH = "bench-piaf-fr"  # the folder with a run of `m3edge bench`
_PART = re.compile(r"(<!-- made: ([\w-]+) -->)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 for what is not up to date")
    options = parser.parse_args()
    stale = [path for path in FILES if render(path.read_text()) != path.read_text()]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'not up to date' if options.check else 'written'}")
        if not options.check:
            path.write_text(render(path.read_text()))
    return 1 if options.check and stale else 0


def render(text: str) -> str:
    """The text with every made part made anew; parts inside a line stay inside it."""

    def make(match: re.Match[str]) -> str:
        start, name, old, end = match.groups()
        try:
            content = MADE[name]()
        except FileNotFoundError as error:
            content = f"(not measured yet: results/{Path(error.filename).relative_to(RESULTS).as_posix()})"
        return f"{start}\n{content}\n{end}" if old.startswith("\n") else f"{start}{content}{end}"

    return _PART.sub(make, text)


def result(name: str) -> Any:
    """A file of results/ as JSON."""
    return json.loads((RESULTS / f"{name}.json").read_bytes())


# `m3edge bench`


def bench_setup() -> str:
    report = result(f"{BENCH}/bench")
    machine, settings = report["machine"], report["settings"]
    return (
        f"({report['dataset']}, {report['documents']} documents, {report['queries']} queries; {machine['cpu']}, "
        f"{settings['threads']} threads; {machine['date']})"
    )


def bench_picture() -> str:
    names = ", ".join(model["precision"] for model in result(f"{BENCH}/bench")["models"])
    return f"![nDCG@10 against the time of a query, for {names}](benchmarks/results/{BENCH}/quality-latency.svg)"


def bench_speed() -> str:
    return speed_table(result(f"{BENCH}/bench")["models"])


def bench_quality() -> str:
    return quality_table(result(f"{BENCH}/bench")["models"])


def bench_parts() -> str:
    return parts_table(result(f"{BENCH}/bench")["models"])


def bench_growth() -> str:
    models = result(f"{BENCH}/bench")["models"]
    return growth_table(next(model for model in models if model["precision"] == "int8"))


def int8_speed() -> str:
    """How many times as fast as fp32: documents in bulk, one query."""
    by_precision = {model["precision"]: model for model in result(f"{BENCH}/bench")["models"]}
    fp32, int8 = by_precision["fp32"], by_precision["int8"]
    return (
        f"{int8['documents_per_s'] / fp32['documents_per_s']:.1f} times as many documents a second as fp32 and answers "
        f"a query in {int8['latency_ms']['p50']:.1f} ms instead of {fp32['latency_ms']['p50']:.1f}"
    )


# Peers


def peers_encode() -> str:
    rows = [
        [
            row["name"], str(row["heads"]), f"{row['query_ms']:.1f}", f"{row['passages_per_s']:.1f}",
            f"{row['m3edge_times_as_fast']:.2f}", f"{row['cosine']:.4f}",
        ]
        for row in _running("encode")
    ]  # fmt: skip
    header = [
        "encoder, mini's weights",
        "heads",
        "query ms",
        "passages/s",
        "m3edge int8 is × as fast",
        "cosine to fp32",
    ]
    return table(header, rows)


def peers_search() -> str:
    rows = [
        [row["name"], f"{row['query_ms']:.1f}", f"{row['m3edge_times_as_fast']:.2f}", f"{row['nDCG@10']:.3f}"]
        for row in _running("search")
    ]
    return table(["search, vectors given", "query ms", "m3edge is × as fast", "nDCG@10"], rows)


def peers_maxsim() -> str:
    rows = [
        [row["name"], f"{row['query_ms']:.2f}", f"{row['m3edge_times_as_fast']:.1f}", f"{row['largest_error']:.5f}"]
        for row in _running("maxsim")
    ]
    return table(["MaxSim, 100 documents", "ms", "m3edge int8 is × as fast", "largest error"], rows)


def peers_dense() -> str:
    rows = [
        [
            row["name"], f"{row['build_s']:.1f}", f"{row['query_ms']:.3f}", f"{row['m3edge_times_as_fast']:.2f}",
            f"{row['recall']:.3f}",
        ]
        for row in _running("dense")
    ]  # fmt: skip
    return table(["dense graph", "build s", "query ms", "m3edge is × as fast", "recall@10"], rows)


def peers_setup() -> str:
    """What each task ran on, and who did not run and why."""
    lines = []
    for name, task in _peer_tasks().items():
        machine = task["machine"]
        lines.append(
            f"- `{name}`: {task['data']}; {task['threads']} threads of an {machine['cpu']}, medians of "
            f"{task['rounds']} rounds, {machine['date']}, commit {machine['commit']}"
        )
        lines += [f"  - {row['name']}: {row['does_not_run']}" for row in task["rows"] if "does_not_run" in row]
    return "\n".join(lines)


def peers_versions() -> str:
    rows = [row for task in _peer_tasks().values() for row in task["rows"] if "version" in row]
    names = {row["name"].split(",")[0].split(" ")[0]: row["version"] for row in rows}
    return ", ".join(f"{name} {version}" for name, version in names.items())


def _peer_tasks() -> dict[str, Any]:
    """Those that have been measured."""
    return {name: result(f"peers-{name}") for name in PEER_TASKS if (RESULTS / f"peers-{name}.json").exists()}


def _running(task: str) -> list[dict[str, Any]]:
    return [row for row in result(f"peers-{task}")["rows"] if "does_not_run" not in row]


# Quality


def quality() -> str:
    return quality_script.table(result("quality-mini-int8")["rows"])


def quality_means() -> str:
    """The mean row alone."""
    rows = result("quality-mini-int8")["rows"]
    means = [f"{np.mean([row['modes'][mode]['nDCG@10'] for row in rows]):.3f}" for mode in MODES]
    return table([f"mean of {len(rows)} sets", *MODES], [["nDCG@10", *means]])


def codec_quality() -> str:
    """What int8 token vectors cost against fp16."""
    before, after = (result(name)["rows"] for name in ("quality-mini-int8-tokens-fp16", "quality-mini-int8"))
    parts = []
    for mode in ("tokens", "all"):
        means = [np.mean([row["modes"][mode]["nDCG@10"] for row in rows]) for rows in (before, after)]
        parts.append(f"`{mode}` {means[0]:.4f} → {means[1]:.4f}")
    return ", ".join(parts)


def lexical() -> str:
    rows = result("lexical")["rows"]
    lines = []
    for kind in ("m3", "m3-idf", "bm25"):
        own = [row for row in rows if row["lexical"] == kind]
        values = [[row["alone"] for row in own], *([row["all"][w] for row in own] for w in ("0.3", "0.6", "0.9"))]
        name = "`m3`, the default" if kind == "m3" else f"`{kind}`"
        lines.append([name, *(f"{np.mean(column):.3f}" for column in values)])
    header = ["`lexical`, nDCG@10 (1)", "alone", "dense + 0.3 · lexical + tokens", "weight 0.6", "weight 0.9"]
    return table(header, lines)


def paper_tables() -> str:
    return tables.tables(result("tables-mini-int8")["rows"], "xquad-")


# Parts of the index


def postings_setup() -> str:
    report = result("postings-500000-m3")
    return f"synthetic texts, {report['postings_a_query_median']:,} postings a query in the median"


def postings() -> str:
    rows = {row["name"]: row for row in result("postings-500000-m3")["rows"]}
    shown = {
        "m3edge, `m3`": "m3edge",
        "m3edge, `bm25`": "m3edge bm25",
        "bm25s, its arrays with our weights": "bm25s",
        "tantivy, BM25": "tantivy",
        "numpy, added up by hand": "numpy accumulation",
    }
    lines = []
    for title, name in shown.items():
        size = rows[name].get("bytes_a_posting")
        lines.append(
            [title, f"{rows[name]['median_ms']:.2f}", f"{rows[name]['p99_ms']:.1f}", f"{size:.1f}" if size else ""]
        )
    return table(["", "median ms", "p99 ms", "bytes a posting"], lines)


def codecs() -> str:
    rows = {row["what"]: row for row in result("maxsim")["rows"] if row["dim"] == 384 and row["threads"] == 2}
    lines = []
    for codec in ("int8", "fp16", "int4", "binary"):
        row = rows[f"store {codec}"]
        sizes = [str(_bytes_a_token(codec, dim)) for dim in (384, 1024)]
        name = "`int8`, the default" if codec == "int8" else f"`{codec}`"
        lines.append(
            [
                name,
                *sizes,
                np.format_float_positional(row["largest_error"], 1, fractional=False),
                f"{row['median_ms']:.1f}",
            ]
        )
    header = ["`token_codec`", "bytes a token, mini (384)", "BGE-M3 (1,024)"]
    return table([*header, "largest error of a score (1)", "100 documents, ms (1)"], lines)


def numpy_maxsim() -> str:
    (row,) = [row for row in result("maxsim")["rows"] if row["dim"] == 384 and row["what"] == "numpy fp32"]
    return f"{row['median_ms']:.1f} ms"


def _bytes_a_token(codec: str, dim: int) -> int:
    from m3edge._kernels_numpy import record_bytes

    return 2 * dim if codec == "fp16" else record_bytes(dim, {"int8": 8, "int4": 4, "binary": 1}[codec])


def precisions() -> str:
    columns = {
        "graph_mb": ("MB", ".0f"),
        "dense_cosine_mean": ("dense cos mean", ".5f"),
        "dense_cosine_p1": ("p1", ".5f"),
        "dense_cosine_worst": ("worst", ".5f"),
        "token_cosine_mean": ("token cos mean", ".5f"),
        "maxsim_difference": ("MaxSim diff", ".4f"),
        "sparse_weight_difference": ("sparse diff", ".4f"),
        "sparse_jaccard": ("Jaccard", ".4f"),
    }
    lines = [
        [row["precision"], *(format(row[key], form) for key, (_, form) in columns.items())]
        for row in result("precisions-mini")["rows"]
    ]
    return table(["precision", *(title for title, _ in columns.values())], lines)


def filters() -> str:
    """The way that is chosen; without a filter: the dense part of benchmarks/hybrid.py."""
    unfiltered = {row["dense"]: row["parts_median_ms"]["dense"] for row in result("hybrid")["rows"]}
    rows = [row for row in result("filters")["rows"] if row["way"] == "chosen"]
    shares = sorted({row["share"] for row in rows}, reverse=True)
    lines = []
    for kind in ("exact", "hnsw"):
        by_share = {row["share"]: row for row in rows if row["dense"] == kind}
        cells = [f"{by_share[share]['dense_ms']:.1f} ({by_share[share]['dense_p99_ms']:.1f})" for share in shares]
        lines.append([f"`{kind}`", f"{unfiltered[kind]:.1f}", *cells])
    return table(["dense part, ms (p99)", "no filter", *(f"{100 * share:g} % pass" for share in shares)], lines)


def filters_recall() -> str:
    rows = [row for row in result("filters")["rows"] if row["way"] == "chosen"]
    return f"at least {min(row['recall@10'] for row in rows)}"


def hybrid() -> str:
    exact, hnsw = (next(row for row in result("hybrid")["rows"] if row["dense"] == kind) for kind in ("exact", "hnsw"))
    return (
        f"{exact['median_ms']:.1f} ms with `exact` and {hnsw['median_ms']:.1f} ms (p99 {hnsw['p99_ms']:.1f}) with `hnsw`, "
        f"whose graph takes {hnsw['build_s']:.0f} s to build; `search_batch` answers {exact['batch_queries_a_second']} and "
        f"{hnsw['batch_queries_a_second']} queries a second where single searches answer "
        f"{exact['single_queries_a_second']} and {hnsw['single_queries_a_second']}"
    )


def start() -> str:
    """From a fresh process to the first vector, and its parts, in ms."""
    report = result("start-m3-mini-int8")
    parts = [[name, f"{value:.0f}"] for name, value in report["parts"].items() if name != "peak_mb"]
    whole, parsed = report["whole"], report["parsed"]
    parts += [
        ["**all, as `Encoder.load` does it**", f"**{whole['first vector']:.0f}**"],
        ["the same without `vocabulary.bin`", f"{parsed['first vector']:.0f}"],
    ]
    return table(["part", "ms"], parts)


def start_setup() -> str:
    report = result("start-m3-mini-int8")
    machine = report["machine"]
    return (
        f"({report['model']}; {machine['cpu']}, {machine['threads']} threads; medians of {report['rounds']} fresh "
        f"processes, {machine['date']}; peak memory {report['whole']['peak_mb']:.0f} MB, without `vocabulary.bin` "
        f"{report['parsed']['peak_mb']:.0f} MB)"
    )


def four_bits() -> str:
    """How near int4 is to fp32 by the way of rounding."""
    report = result("four-bits")
    fp32 = report["fp32"]["ndcg"]
    rows = [
        [
            name, f"{row['dense_cosine_mean']:.4f}", f"{row['dense_cosine_worst']:.4f}",
            f"{row['token_cosine_mean']:.4f}", f"{row['sparse_weight_difference']:.3f}",
            *(f"{100 * (fp32[mode] - row['ndcg'][mode]):+.1f}" for mode in fp32),
        ]
        for name, row in report["roundings"].items()
    ]  # fmt: skip
    lost = [f"{mode}: points of nDCG@10 lost" for mode in fp32]
    return table(["rounding", "dense cosine", "worst", "token cosine", "sparse difference", *lost], rows)


def four_bits_setup() -> str:
    report = result("four-bits")
    searched = f"; nDCG@10 on {', '.join(report['datasets'])}, {report['queries']} queries each"
    return f"({report['texts']} texts in twelve languages{searched if report['datasets'] else ''})"


def token_store() -> str:
    """Points of nDCG@10 lost against fp16 without pooling, means over the data sets."""
    rows = result("token-store")["rows"]

    def mean(codec: str, pooling: int, name: str) -> float:
        return float(np.mean([row[name] for row in rows if (row["codec"], row["pooling"]) == (codec, pooling)]))

    lines = []
    for codec in ("fp16", "int8", "int4", "binary"):
        cells = []
        for pooling in (1, 2, 3):
            lost = [100 * (mean("fp16", 1, part) - mean(codec, pooling, part)) for part in ("tokens", "all")]
            cells.append(
                f"{mean(codec, pooling, 'bytes_a_token'):.0f}: {lost[0]:.2f}, {lost[1]:.2f}".replace("-0.00", "0.00")
            )
        lines.append([f"`{codec}`", *cells])
    return table(["`token_codec`", "pooling 1: bytes a token, tokens, all", "pooling 2", "pooling 3"], lines)


# Engines and sizes


def engines() -> str:
    report = result("engines-mini")
    shapes = list(report["speed"])
    start = {"onnxruntime int8": "onnxruntime", "openvino static int8": "openvino, cached"}
    lines = []
    for name in report["speed"][shapes[0]]:
        cells = [
            f"{report['speed'][shape][name]['ms']:.1f} ({report['speed'][shape][name]['speed_over_fp32']:.2f})"
            for shape in shapes
        ]
        lines.append([name, *cells, f"{report['start_seconds'][start[name]]:.2f}" if name in start else ""])
    return table(["engine", *(f"{shape} tokens, ms (× fp32)" for shape in shapes), "first vector after, s"], lines)


def fidelity() -> str:
    columns = {
        "dense_cosine_mean": "dense cosine", "dense_cosine_worst": "worst", "token_cosine_mean": "token cosine",
        "token_cosine_p1": "1st percentile", "maxsim_difference": "MaxSim difference",
    }  # fmt: skip
    rows = result("fidelity-m3-mini")["precisions"]
    lines = [[name, *(f"{row[column]:.4f}" for column in columns)] for name, row in rows.items()]
    return table(["against fp32", *columns.values()], lines)


def full_size() -> str:
    report = result("full-size")
    lines = []
    for name, title in (
        ("int8", "m3edge int8"),
        ("int4", "m3edge int4"),
        ("fp32", "m3edge fp32"),
        ("peer", "bge-m3-lite int8"),
    ):
        cells = [f"{shape['ms'][name]:.0f}" for shape in report["speed"].values()]
        peak = report["peak_mb"].get(f"{name} 8192 tokens")
        lines.append([title, *cells, f"{report['size_mb'][name]:.0f}", "" if peak is None else f"{peak:.0f}"])
    return table([*["graph"], *(f"{shape}, ms" for shape in report["speed"]), "MB", "peak MB, 8,192 tokens"], lines)


def full_size_ratios() -> str:
    speed = result("full-size")["speed"]
    return ", ".join(f"{shape} {speed[shape]['int8_speed_over']['peer']:.2f}" for shape in speed)


MADE: dict[str, Callable[[], str]] = {
    "start": start,
    "start-setup": start_setup,
    "four-bits": four_bits,
    "four-bits-setup": four_bits_setup,
    "bench-setup": bench_setup,
    "bench-picture": bench_picture,
    "bench-speed": bench_speed,
    "bench-quality": bench_quality,
    "bench-parts": bench_parts,
    "bench-growth": bench_growth,
    "int8-speed": int8_speed,
    "peers-encode": peers_encode,
    "peers-search": peers_search,
    "peers-maxsim": peers_maxsim,
    "peers-dense": peers_dense,
    "peers-setup": peers_setup,
    "peers-versions": peers_versions,
    "quality": quality,
    "quality-means": quality_means,
    "codec-quality": codec_quality,
    "lexical": lexical,
    "paper-tables": paper_tables,
    "postings": postings,
    "postings-setup": postings_setup,
    "codecs": codecs,
    "numpy-maxsim": numpy_maxsim,
    "precisions": precisions,
    "filters": filters,
    "filters-recall": filters_recall,
    "hybrid": hybrid,
    "token-store": token_store,
    "engines": engines,
    "fidelity": fidelity,
    "full-size": full_size,
    "full-size-ratios": full_size_ratios,
}

if __name__ == "__main__":
    sys.exit(main())
