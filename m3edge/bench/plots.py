"""A benchmark's report as pictures: quality against time and size, a query's parts, growth. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from m3edge.bench.stopwatch import PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = ("quality-latency", "quality-size", "latency-split", "growth")

# Okabe and Ito's palette, which people with any kind of colour blindness can tell apart; without its yellow, which is
# too pale for a line.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_PART_COLOURS = {
    "tokenise": "#0072B2",
    "encode": "#56B4E9",
    "dense": "#009E73",
    "sparse": "#D55E00",
    "MaxSim": "#E69F00",
    "fuse": "#CC79A7",
}
_SHAPES = {"all": "o", "tokens": "D", "dense": "s", "sparse": "^"}
_NARROWEST = 0.06  # of the longest bar: a part that is narrower has no room for its number
_Place = Literal["outside right upper", "outside lower center"]
_LEGEND_LETTERS = 90  # that fit in a line below a picture; a legend's entry takes some ten beside its name
_STYLE: Any = {  # a plain dict: matplotlib types one by every setting it knows
    "svg.hashsalt": "m3edge",  # the same report gives the same file
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
}


def write_plots(report: dict[str, Any], out: Path) -> list[Path]:
    """PNG and SVG of each of PLOTS in the folder `out`. Raises ImportError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'm3edge[bench]'") from error
    written = []
    with matplotlib.rc_context(_STYLE):
        for name in PLOTS:
            figure = Figure(figsize=(7.2, 4.2), layout="constrained")
            _DRAW[name](figure, report)
            for ending in ("png", "svg"):
                path = out / f"{name}.{ending}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if ending == "svg" else None)
                written.append(path)
    return written


def _draw_quality(figure: Figure, report: dict[str, Any], title: str, x_label: str, xs: list[float]) -> None:
    """A colour and a line for each model, a shape for each way of ranking."""
    models = report["models"]
    axes = figure.add_subplot()
    for number, (model, x) in enumerate(zip(models, xs, strict=True)):
        values = {mode: model["quality"][mode]["nDCG@10"] for mode in _SHAPES}
        colour = _colour(number)
        axes.plot([x, x], [min(values.values()), max(values.values())], color=colour, linewidth=1, alpha=0.6)
        for mode, value in values.items():
            axes.plot(x, value, _SHAPES[mode], color=colour, markersize=8, markeredgecolor="white")
    axes.set_xlim(0, 1.08 * max(xs))
    axes.set_xlabel(x_label)
    axes.set_ylabel("nDCG@10 (1 is best)")
    axes.set_title(f"{title}\n{_subject(report)}")
    axes.grid(alpha=0.25)
    figure.legend(
        [axes.plot([], [], shape, color="grey", markersize=8)[0] for shape in _SHAPES.values()],
        _SHAPES,
        title="ranked by",
        loc="outside right lower",
        alignment="left",
    )
    _model_legend(figure, axes, models, "outside right upper")


def _draw_quality_latency(figure: Figure, report: dict[str, Any]) -> None:
    times = [model["latency_ms"]["p50"] for model in report["models"]]
    _draw_quality(figure, report, "Quality against the time of a query", "median query, milliseconds", times)


def _draw_quality_size(figure: Figure, report: dict[str, Any]) -> None:
    sizes = [model["size_bytes"] / 1e6 for model in report["models"]]
    _draw_quality(figure, report, "Quality against size on disk", "model folder, megabytes", sizes)


def _draw_latency_split(figure: Figure, report: dict[str, Any]) -> None:
    models = report["models"]
    axes = figure.add_subplot()
    names = [model["name"] for model in models]
    totals = [sum(model["parts_ms"][part] for part in PARTS) for model in models]
    left = [0.0] * len(models)
    for part in PARTS:
        widths = [model["parts_ms"][part] for model in models]
        bars = axes.barh(names, widths, left=left, label=part, color=_PART_COLOURS[part], edgecolor="white", height=0.7)
        inside = [f"{width:.1f}" if width > _NARROWEST * max(totals) else "" for width in widths]
        axes.bar_label(bars, inside, label_type="center", fontsize=9)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, total in enumerate(totals):
        axes.text(total + 0.01 * max(totals), row, f"{total:.1f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.1 * max(totals))
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("milliseconds, the medians of the parts")
    axes.set_title(f"Where a query's time goes\n{_subject(report)}")
    figure.legend(loc="outside lower center", ncols=len(PARTS), columnspacing=1.2)


def _draw_growth(figure: Figure, report: dict[str, Any]) -> None:
    models = report["models"]
    time_axes, size_axes = figure.subplots(1, 2)
    for number, model in enumerate(models):
        growth = model["index"]["growth"]
        documents = [row["documents"] for row in growth]
        milliseconds, megabytes = [row["search_ms"] for row in growth], [row["size_bytes"] / 1e6 for row in growth]
        time_axes.plot(documents, milliseconds, marker="o", markersize=4, color=_colour(number))
        # Models of one width make indexes of one size: the first line is the widest, so that all can be seen.
        width = 1.5 + 2 * (len(models) - 1 - number)
        size_axes.plot(documents, megabytes, linewidth=width, solid_capstyle="round", color=_colour(number))
    for axes, title, unit in (
        (time_axes, "Search, encoding not counted", "milliseconds"),
        (size_axes, "Index on disk", "megabytes"),
    ):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("documents")
        axes.set_ylabel(unit)
        axes.set_title(title)
        axes.grid(alpha=0.25)
    longest = max(len(model["name"]) for model in models)
    columns = max(1, min(len(models), _LEGEND_LETTERS // (longest + 10)))
    _model_legend(figure, time_axes, models, "outside lower center", columns)


def _model_legend(figure: Figure, axes: Axes, models: list[dict[str, Any]], place: _Place, columns: int = 1) -> None:
    lines = [axes.plot([], [], linewidth=4, color=_colour(number))[0] for number in range(len(models))]
    figure.legend(lines, [model["name"] for model in models], title="model", alignment="left", loc=place, ncols=columns)


def _subject(report: dict[str, Any]) -> str:
    return f"{report['dataset']}: {report['documents']:,} documents, {report['queries']:,} queries"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


_DRAW = {
    "quality-latency": _draw_quality_latency,
    "quality-size": _draw_quality_size,
    "latency-split": _draw_latency_split,
    "growth": _draw_growth,
}
