"""The index: filters, whole searches, how token vectors are stored, growth."""

from __future__ import annotations

import numpy as np

from m3edge._maxsim_numpy import record_bytes
from m3edge.bench.report import table

from .results import result

BITS = {"int8": 8, "fp16": 16, "int4": 4, "binary": 1}


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


def hybrid_first() -> str:
    exact = next(row for row in result("hybrid")["rows"] if row["dense"] == "exact")
    first, again = exact["first_20_median_ms"], exact["again_median_ms"]
    return f"{first:.1f} ms with `exact` where the same ones then take {again:.1f}"


def codecs() -> str:
    dims = (384, 1024)
    rows = {(row["what"], row["dim"]): row for row in result("maxsim")["rows"] if row["threads"] == 2}

    def line(name: str, what: str, sizes: list[str]) -> list[str]:
        errors = [rows[what, dim]["largest_error"] for dim in dims]
        error = np.format_float_positional(max(errors), 1, fractional=False) if None not in errors else ""
        return [name, *sizes, error, *(f"{rows[what, dim]['median_ms']:.1f}" for dim in dims)]

    lines = []
    for codec, bits in BITS.items():
        name = "`int8`, the default" if codec == "int8" else f"`{codec}`"
        lines.append(line(name, f"store {codec}", [str(record_bytes(dim, bits)) for dim in dims]))
    lines.append(line("numpy on whole float32", "numpy fp32", [str(4 * dim) for dim in dims]))
    lines.append(line("the int8 products alone (2)", "chip int8", ["", ""]))
    header = ["`token_codec`", "bytes a token, mini (384)", "BGE-M3 (1,024)"]
    return table([*header, "largest error of a score (1)", "100 documents, ms (1): 384", "1,024"], lines)


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


def scale() -> str:
    """A row for each number of documents; what no step measured yet stays empty."""
    header = [
        "documents", "dense", "writing s (CPU)", "indexing s (CPU)", "MB on disk",
        "MB while writing: first, last tenth",
        "MB at most", "open s", "from disk", "first search s", "search ms p50, p99", "dense alone", "exact", "filtered",
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
                f"{search['first_search_ms'] / 1000:.2f}" if search else "",
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
        f"derived files are current; the first search waits "
        f"{found['first_search_ms'] / 1000:.1f} s, later ones answer in {found['search_ms']['p50']:.1f} ms "
        f"(p99 {found['search_ms']['p99']:.1f})"
    )


def scale_compact() -> str:
    """The largest index with a graph of which half was deleted, added again, deleted and compacted."""
    measured = [(n, row["compact"]) for n, row in result("scale").items() if "recall@10" in row.get("compact", {})]
    if not measured:
        return "(not measured yet)"
    n, found = measured[-1]
    new, again, compacted = found["recall@10"].values()
    return (
        f"Of {int(n):,} documents half were deleted and added again: the graph's recall@10 went from {new:.3f} to "
        f"{again:.3f}. Deleted once more and compacted, {found['mib']['before']:,} MiB became "
        f"{found['mib']['after']:,}, in {found['compact']['wall_s']:.0f} s, and recall@10 {compacted:.3f}"
    )


def _seconds_and_cpu(part: dict[str, float] | None) -> str:
    return f"{part['wall_s']:.0f} ({part['cpu_s']:.0f})" if part else ""


def _p50_p99(part: dict[str, float] | None) -> str:
    return f"{part['p50']:.1f}, {part['p99']:.1f}" if part else ""


PARTS = {
    "filters": filters,
    "filters-recall": filters_recall,
    "hybrid": hybrid,
    "hybrid-first": hybrid_first,
    "codecs": codecs,
    "token-store": token_store,
    "scale": scale,
    "scale-line": scale_line,
    "scale-compact": scale_compact,
}
