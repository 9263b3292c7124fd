"""Retrieval quality: of each data set, by precision, by lexical score, and the paper's tables in small."""

from __future__ import annotations

import lexical as lexical_script
import mcls_report
import numpy as np
import quality as quality_script
import tables as tables_script

from m3edge.bench.report import table
from m3edge.evaluation import MODES

from .results import METHODS, PRECISIONS, common_sets, is_there, mean_ndcg, modes_by_set, result


def per_set() -> str:
    return quality_script.table(result("quality/int8")["rows"])


def means() -> str:
    """The mean row alone."""
    sets = modes_by_set("quality/int8")
    cells = [f"{mean_ndcg(sets, list(sets), mode):.3f}" for mode in MODES]
    return table([f"mean of {len(sets)} sets", *MODES], [["nDCG@10", *cells]])


def setup() -> str:
    """Which file holds how many sets, and what it was measured with."""
    lines = []
    for title, file in _files().items():
        report = result(file)
        machine = report["machine"]
        lines.append(f"{title}: {len(report['rows'])} sets, {machine['date']}, commit {machine['commit']}")
    return "; ".join(lines)


def by_precision() -> str:
    """nDCG@10 in fp32, and how many points each of the others loses, over the sets that it was measured on too."""
    reports = {title: modes_by_set(file) for title, file in _files().items()}
    fp32 = reports.pop("fp32")
    lines = [["fp32, nDCG@10", str(len(fp32)), *(f"{mean_ndcg(fp32, list(fp32), m):.4f}" for m in METHODS)]]
    for title, report in reports.items():
        sets = common_sets(fp32, report)
        lost = [100 * (mean_ndcg(fp32, sets, m) - mean_ndcg(report, sets, m)) for m in METHODS]
        lines.append([f"{title}, points lost", str(len(sets)), *(f"{points:.2f}" for points in lost)])
    return table(["mean over sets", "sets", *METHODS], lines)


def _files() -> dict[str, str]:
    """What was measured of results/quality, by its title."""
    return {title: f"quality/{name}" for name, title in PRECISIONS.items() if is_there(f"quality/{name}")}


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
    weights = [f"{0.3 * factor:.1f}" for factor in factors]
    counts = [len(_lexical_sets(part)) for part in ("choose", "confirm")]
    header = ["`lexical`", f"{counts[0]} sets: alone", *weights, f"{counts[1]} others: alone", *weights]
    return table(header, lines)


def lexical_sets() -> str:
    return f"looked at first: {', '.join(_lexical_sets('choose'))}; the others: {', '.join(_lexical_sets('confirm'))}"


def lexical_gain() -> str:
    """Points of nDCG@10 that twice the weight gives bm25 on the sets that had no part in the choice."""
    rows = [row for row in result("lexical")["rows"] if row["part"] == "confirm" and row["lexical"] == "bm25"]
    gains = [100 * (row["presets"]["general"]["2"] - row["presets"]["general"]["1"]) for row in rows]
    return f"{np.mean(gains):+.2f} points"


def _lexical_sets(part: str) -> list[str]:
    return list(dict.fromkeys(row["dataset"] for row in result("lexical")["rows"] if row["part"] == part))


def paper_tables() -> str:
    return tables_script.tables(result("tables-mini-int8")["rows"], "xquad-")


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


PARTS = {
    "quality": per_set,
    "quality-means": means,
    "quality-setup": setup,
    "quality-loss": by_precision,
    "lexical": lexical,
    "lexical-sets": lexical_sets,
    "lexical-gain": lexical_gain,
    "paper-tables": paper_tables,
    "paper-tables-engine": paper_tables_engine,
    "long-documents": long_documents,
    "mcls": lambda: mcls_report.layout(result("mcls")),
    "mcls-setting": lambda: mcls_report.setting(result("mcls")),
}
