"""What mcls.py found, as Markdown."""

from __future__ import annotations

from typing import Any

from m3edge.bench.report import table


def layout(report: dict[str, Any]) -> str:
    """A line for each model, cut and interval, a column for each data set."""
    rows = report["rows"]
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    cases: dict[tuple[str, int, int | None], dict[str, float]] = {}
    for row in rows:
        cases.setdefault((row["model"], row["cut"], row["interval"]), {})[row["dataset"]] = row["nDCG@10"]
    lines = []
    for (model, cut, interval), found in cases.items():
        every = "without" if interval is None else f"every {interval}"
        mean = sum(found.values()) / len(found)
        lines.append(
            [
                model,
                str(cut),
                every,
                f"**{mean:.3f}**",
                *(f"{found[name]:.3f}" if name in found else "" for name in names),
            ]
        )
    return table(["nDCG@10 of the dense vector", "tokens read", "MCLS", "mean", *names], lines)


def setting(report: dict[str, Any]) -> str:
    """How the sibling was made and what it was measured on."""
    cosines = report["training"]["cosine"]
    last = max(cosines, key=int)
    most = max(report["rows"], key=lambda row: row["documents"])
    return (
        f"{last} steps, after which its vectors have a mean cosine of {cosines[last]:.4f} to mini's; "
        f"up to {most['documents']} documents and {most['queries']} queries of each set"
    )
