"""A benchmark's report for people, as Markdown tables; its pictures are drawn in plots.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m3edge.bench.stopwatch import PARTS

QUALITY_MODES = ("dense", "sparse", "tokens", "dense+sparse", "all", "bm25")
_USUAL_NAMES = {"R@100": "Recall@100", "RR@10": "MRR@10"}


def markdown(report: dict[str, Any]) -> str:
    """The report as one Markdown document: quality, speed and memory, the split of a query's time, growth."""
    machine, settings, models = report["machine"], report["settings"], report["models"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    sections = [
        f"# {report['dataset']}: {report['documents']} documents, {report['queries']} queries",
        f"{machine['cpu']}, {settings['threads']} threads, {machine['system']}, Python {machine['python']}; "
        f"{packages}; kernels {machine['kernels']}; {machine['date']}. {_rounds(settings['rounds'])}, "
        f"the models in turn, each in a process of its own; token vectors in {settings['token_codec']}.",
        "## Quality",
        *(quality_table(models, metric) for metric in ("nDCG@10", "R@100", "RR@10")),
        "## Speed, size, memory",
        speed_table(models),
        "A query is one text through `Index.search` with all three parts. A cold start runs from the start of Python "
        "to the first hits, the files in the system's cache; checking the model's files is part of it. Memory is the "
        "peak of what was resident in a process that only queries, that also encodes documents, that builds the index.",
        "## Where a query's time goes, ms",
        parts_table(models),
        f"## Growth of the index ({models[0]['name']})",
        growth_table(models[0]),
    ]
    return "\n\n".join(sections) + "\n"


def quality_table(models: list[dict[str, Any]], metric: str = "nDCG@10") -> str:
    """A row for each model, a column for each way of ranking; `metric` in ir-measures' spelling."""
    rows = [[model["name"], *(f"{model['quality'][mode][metric]:.3f}" for mode in QUALITY_MODES)] for model in models]
    return table([_USUAL_NAMES.get(metric, metric), *QUALITY_MODES], rows)


def speed_table(models: list[dict[str, Any]]) -> str:
    header = ["model", "engine", "MB on disk", "query p50 ms", "p95", "p99", "documents/s", "tokens/s", "cold start s"]
    return table([*header, "MB querying", "MB encoding", "MB indexing"], [_speed_row(model) for model in models])


def parts_table(models: list[dict[str, Any]]) -> str:
    rows = [[model["name"], *(f"{model['parts_ms'][part]:.2f}" for part in PARTS)] for model in models]
    return table(["model", *PARTS], rows)


def growth_table(model: dict[str, Any]) -> str:
    rows = [
        [row["documents"], f"{row['size_bytes'] / 1e6:.1f}", f"{row['search_ms']:.2f}", f"{row['open_ms']:.0f}"]
        for row in model["index"]["growth"]
    ]
    return table(["documents", "MB", "search ms (without encoding)", "opening ms"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def _rounds(number: int) -> str:
    return f"Medians of {number} rounds" if number > 1 else "One round"


def _speed_row(model: dict[str, Any]) -> list[str]:
    latency = model["latency_ms"]
    return [
        model["name"],
        {"cpu": "onnxruntime"}.get(model["provider"], model["provider"]),
        f"{model['size_bytes'] / 1e6:.0f}",
        *(f"{latency[name]:.1f}" for name in ("p50", "p95", "p99")),
        f"{model['documents_per_s']:.1f}",
        f"{model['tokens_per_s']:.0f}",
        f"{model['start_s']['total']:.2f}",
        *(f"{megabytes:.0f}" for megabytes in (model["query_peak_mb"], model["encode_peak_mb"])),
        f"{model['index']['peak_mb']:.0f}",
    ]
