"""What `m3edge bench` found: quality, speed, a query's parts, growth, and the picture."""

from __future__ import annotations

from typing import Any

from m3edge.bench.report import growth_table, parts_table, quality_table, speed_table

from .results import result

RUN = "bench-piaf-fr"  # the folder with a run of `m3edge bench`


def setup() -> str:
    report = result(f"{RUN}/bench")
    machine, settings = report["machine"], report["settings"]
    return (
        f"({report['dataset']}, {report['documents']} documents, {report['queries']} queries; {machine['cpu']}, "
        f"{settings['threads']} threads; {machine['date']})"
    )


def picture() -> str:
    names = ", ".join(model["name"] for model in _models())
    return f"![nDCG@10 against the time of a query, for {names}](benchmarks/results/{RUN}/quality-latency.svg)"


def int8_speed() -> str:
    """How many times as fast as fp32: documents in bulk, one query."""
    models = {(model["precision"], model["provider"]): model for model in _models()}
    fp32, int8 = models["fp32", "cpu"], models["int8", "native"]
    return (
        f"{int8['documents_per_s'] / fp32['documents_per_s']:.1f} times as many documents a second as fp32 and answers "
        f"a query in {int8['latency_ms']['p50']:.1f} ms instead of {fp32['latency_ms']['p50']:.1f}"
    )


def _models() -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = result(f"{RUN}/bench")["models"]
    return models


PARTS = {
    "bench-setup": setup,
    "bench-picture": picture,
    "bench-quality": lambda: quality_table(_models()),
    "bench-speed": lambda: speed_table(_models()),
    "bench-parts": lambda: parts_table(_models()),
    "bench-growth": lambda: growth_table(next(model for model in _models() if model["precision"] == "int8")),
    "int8-speed": int8_speed,
}
