"""A benchmark's report for people: Markdown tables, and pictures where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3edge.bench.stopwatch import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUALITY_MODES = ("dense", "sparse", "tokens", "dense+sparse", "all", "bm25")
PLOTS = ("quality-latency", "quality-size", "latency-split", "growth")


def markdown(report: dict[str, Any]) -> str:
    """The report as one Markdown document: quality, speed and memory, the split of a query's time, growth."""
    machine, settings, models = report["machine"], report["settings"], report["models"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    sections = [
        f"# {report['dataset']}: {report['documents']} documents, {report['queries']} queries",
        f"{machine['cpu']}, {settings['threads']} threads, {machine['system']}, Python {machine['python']}; "
        f"{packages}; kernels {machine['kernels']}; {machine['date']}. Medians of {settings['rounds']} rounds, "
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
    rows = [[model["name"], *(f"{model['quality'][mode][metric]:.3f}" for mode in QUALITY_MODES)] for model in models]
    return table([metric, *QUALITY_MODES], rows)


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


def write_plots(report: dict[str, Any], out: Path) -> list[Path]:
    """PNG and SVG of each of PLOTS. Raises ImportError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'm3edge[bench]'") from error
    models = report["models"]
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "m3edge", "svg.fonttype": "none"}):
        for name in PLOTS:
            figure = Figure(figsize=(6.4, 4), layout="constrained")
            _DRAW[name](figure, models)
            for ending in ("png", "svg"):
                path = out / f"{name}.{ending}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if ending == "svg" else None)
                written.append(path)
    return written


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


def _draw_quality(figure: Figure, models: list[dict[str, Any]], x_name: str, xs: list[float]) -> None:
    """A colour for each model, a shape for each mode."""
    axes = figure.add_subplot()
    for number, (model, x) in enumerate(zip(models, xs, strict=True)):
        for mode, shape in (("all", "o"), ("tokens", "D"), ("dense", "s"), ("sparse", "^")):
            axes.plot(x, model["quality"][mode]["nDCG@10"], shape, color=f"C{number}", alpha=0.85)
            if number == 0:
                axes.plot([], [], shape, color="grey", label=mode)
        axes.plot([], [], "-", linewidth=6, color=f"C{number}", label=model["name"])
    axes.set_xlim(0, 1.1 * max(xs))
    axes.set_xlabel(x_name)
    axes.set_ylabel("nDCG@10")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)


def _draw_quality_latency(figure: Figure, models: list[dict[str, Any]]) -> None:
    _draw_quality(figure, models, "query, p50 in ms", [model["latency_ms"]["p50"] for model in models])


def _draw_quality_size(figure: Figure, models: list[dict[str, Any]]) -> None:
    _draw_quality(figure, models, "model folder, MB", [model["size_bytes"] / 1e6 for model in models])


def _draw_latency_split(figure: Figure, models: list[dict[str, Any]]) -> None:
    axes = figure.add_subplot()
    names = [model["name"] for model in models]
    left = [0.0] * len(models)
    for part in PARTS:
        widths = [model["parts_ms"][part] for model in models]
        axes.barh(names, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms a query, medians of the parts")
    figure.legend(loc="outside upper center", ncols=len(PARTS), fontsize=8)


def _draw_growth(figure: Figure, models: list[dict[str, Any]]) -> None:
    time_axes, size_axes = figure.subplots(1, 2)
    for model in models:
        growth = model["index"]["growth"]
        documents = [row["documents"] for row in growth]
        time_axes.plot(documents, [row["search_ms"] for row in growth], marker="o", label=model["name"])
        size_axes.plot(documents, [row["size_bytes"] / 1e6 for row in growth], marker="o")
    for axes, title in ((time_axes, "search, ms (without encoding)"), (size_axes, "index, MB")):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("documents")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(models), fontsize=8)


_DRAW = {
    "quality-latency": _draw_quality_latency,
    "quality-size": _draw_quality_size,
    "latency-split": _draw_latency_split,
    "growth": _draw_growth,
}
