"""The tables of ablation.py's report, without the PyTorch that made it."""

from __future__ import annotations

from typing import Any

import numpy as np

from m3edge.bench.report import table

METHODS = ("dense", "sparse", "tokens", "dense+sparse", "all")
HELD_OUT = "held out: "  # how the names of the data sets begin that are made of training files
REFERENCE = "self-distillation"  # the training as it is, which the others differ from in one thing


def tables(report: dict[str, Any]) -> str:
    """The means of each variant over the held-out passages and over the evaluation sets; for "all" also the mean
    difference to the training as it is, and its standard error over the sets."""
    sections = []
    for title, held_out in (("held-out passages", True), ("evaluation sets", False)):
        rows = [row for row in report["rows"] if row["dataset"].startswith(HELD_OUT) == held_out]
        by_variant: dict[str, dict[str, dict[str, float]]] = {}
        for row in rows:
            by_variant.setdefault(row["variant"], {})[row["dataset"]] = row["nDCG@10"]
        lines = []
        for name, scores in by_variant.items():
            means = [f"{np.mean([values[method] for values in scores.values()]):.4f}" for method in METHODS]
            lines.append([name, *means, _difference(scores, by_variant.get(REFERENCE, {}))])
        if rows:
            n = len({row["dataset"] for row in rows})
            sections.append(table([f"nDCG@10, {title}, mean of {n}", *METHODS, "all, points gained"], lines))
    return "\n\n".join(sections)


def _difference(scores: dict[str, dict[str, float]], reference: dict[str, dict[str, float]]) -> str:
    common = [name for name in scores if name in reference]
    if scores is reference or len(common) < 2:
        return ""
    gains = [100 * (scores[name]["all"] - reference[name]["all"]) for name in common]
    return f"{np.mean(gains):+.2f} ± {np.std(gains, ddof=1) / np.sqrt(len(gains)):.2f}"


def setting(report: dict[str, Any]) -> str:
    """How large the trainings were, for a line of text."""
    training = next(iter(report["trainings"].values()))
    steps = training["log"][-1]["steps"]
    return (
        f"{training['passages']:,} passages and {training['pairs']:,} pairs, at most {report['passages']} passages of "
        f"a file, {steps} steps; {report['queries']} queries a set"
    )
