"""What a precision costs and gives on an engine: nearness to fp32, size, start, speed."""

from __future__ import annotations

from m3edge.bench.report import table

from .results import PRECISIONS, result


def precisions() -> str:
    """What `m3edge-export report` says."""
    columns = {
        "graph_mb": ("MB", ".0f"),
        "first_vector_seconds": ("first vector, s", ".2f"),
        "dense_cosine_mean": ("dense cos mean", ".5f"),
        "dense_cosine_p1": ("p1", ".5f"),
        "dense_cosine_worst": ("worst", ".5f"),
        "token_cosine_mean": ("token cos mean", ".5f"),
        "maxsim_difference": ("MaxSim diff", ".4f"),
        "sparse_weight_difference": ("sparse diff", ".4f"),
        "sparse_jaccard": ("Jaccard", ".4f"),
    }
    lines = []
    for row in result("precisions-mini")["rows"]:
        name = row["precision"] if row["engine"] == "cpu" else f"{row['precision']}-{row['engine']}"
        lines.append([PRECISIONS[name], *(format(row[key], form) for key, (_, form) in columns.items())])
    return table(["precision", *(title for title, _ in columns.values())], lines)


def fidelity() -> str:
    columns = {
        "dense_cosine_mean": "dense cosine", "dense_cosine_worst": "worst", "token_cosine_mean": "token cosine",
        "token_cosine_p1": "1st percentile", "maxsim_difference": "MaxSim difference",
    }  # fmt: skip
    rows = result("fidelity-m3-mini")["precisions"]
    lines = [[name, *(f"{row[column]:.4f}" for column in columns)] for name, row in rows.items()]
    return table(["against fp32", *columns.values()], lines)


def nncf() -> str:
    return "\n\n".join(_nncf(name) for name in ("nncf-static-m3-mini", "nncf-static-m3-mini-amx"))


def _nncf(name: str) -> str:
    report = result(name)
    columns = {
        "dense_cosine_mean": "dense cosine", "dense_cosine_worst": "worst", "token_cosine_mean": "token cosine",
        "token_cosine_p1": "1st percentile",
    }  # fmt: skip
    lines = []
    for engine, quality in report["quality"].items():
        cells = []
        for row in report["speed"].values():
            ratio = f" ({row['times_as_fast'][engine]:.2f})" if engine in row["times_as_fast"] else ""
            cells.append(f"{row['ms'][engine]:.1f}{ratio}")
        lines.append([engine, *cells, *(f"{quality[column]:.5f}" for column in columns)])
    speed = report["speed"].items()
    shapes = [f"{shape}, ms" if row["texts"] == 1 else f"{row['texts']} texts, ms" for shape, row in speed]
    kernels = report["machine"]["kernels"].partition("(")[2].rstrip(")")
    return table([f"int8, {kernels}", *shapes, *columns.values()], lines)


def engines() -> str:
    report = result("engines-m3-mini")
    shapes = list(report["speed"])
    start = {
        "native int8": "native", "onnxruntime int8": "onnxruntime", "openvino static int8": "openvino, cached",
    }  # fmt: skip
    lines = []
    for name in report["speed"][shapes[0]]:
        cells = [
            f"{report['speed'][shape][name]['ms']:.1f} ({report['speed'][shape][name]['speed_over_fp32']:.2f})"
            for shape in shapes
        ]
        lines.append([name, *cells, f"{report['start_seconds'][start[name]]:.2f}" if name in start else ""])
    directly = report["start_seconds"]["openvino directly, cached"]
    lines.append(["openvino static int8, called directly", *[""] * len(shapes), f"{directly:.2f}"])
    return table(["engine", *(f"{shape} tokens, ms (× fp32)" for shape in shapes), "first vector after, s"], lines)


def engines_amx() -> str:
    speed = result("engines-m3-mini-amx")["speed"]
    names = [name for name in speed["8x128"] if name != "onnxruntime fp32"]
    return ", ".join(
        f"{name} {speed['8x128'][name]['speed_over_fp32']:.2f} ({speed['1x16'][name]['speed_over_fp32']:.2f})"
        for name in names
    )


def start() -> str:
    """From a fresh process to the first vector, and its parts, in ms."""
    report = result("start-m3-mini-int8")
    parts = [[name, f"{value:.0f}"] for name, value in report["parts"].items() if name != "peak_mb"]
    whole, parsed = report["whole"], report["parsed"]
    parts += [
        ["**all, as `Encoder.load` does it**", f"**{whole['first vector']:.0f}**"],
        ["the same without `vocabulary.bin`", f"{parsed['first vector']:.0f}"],
    ]
    return table(["part", "ms"], parts)


def start_setup() -> str:
    report = result("start-m3-mini-int8")
    machine = report["machine"]
    return (
        f"({report['model']} on {report['provider']}; {machine['cpu']}, {machine['threads']} threads; medians of "
        f"{report['rounds']} fresh processes, {machine['date']}; peak memory {report['whole']['peak_mb']:.0f} MB, "
        "without `vocabulary.bin` "
        f"{report['parsed']['peak_mb']:.0f} MB)"
    )


def four_bits() -> str:
    """How near int4 is to fp32 by the way of rounding."""
    report = result("four-bits")
    fp32 = report["fp32"]["ndcg"]
    rows = [
        [
            name, f"{row['dense_cosine_mean']:.4f}", f"{row['dense_cosine_worst']:.4f}",
            f"{row['token_cosine_mean']:.4f}", f"{row['sparse_weight_difference']:.3f}",
            *(f"{100 * (fp32[mode] - row['ndcg'][mode]):+.1f}" for mode in fp32),
        ]
        for name, row in report["roundings"].items()
    ]  # fmt: skip
    lost = [f"{mode}: points of nDCG@10 lost" for mode in fp32]
    return table(["rounding", "dense cosine", "worst", "token cosine", "sparse difference", *lost], rows)


def four_bits_setup() -> str:
    report = result("four-bits")
    searched = f"; nDCG@10 on {', '.join(report['datasets'])}, {report['queries']} queries each"
    return f"({report['texts']} texts in twelve languages{searched if report['datasets'] else ''})"


def four_bits_line() -> str:
    rows = result("four-bits")["roundings"]
    gptq, nearest = (rows[name]["dense_cosine_mean"] for name in ("GPTQ", "nearest"))
    return f"{gptq:.3f}; rounded to the nearest, {nearest:.3f}"


PARTS = {
    "precisions": precisions,
    "fidelity": fidelity,
    "nncf": nncf,
    "engines": engines,
    "engines-amx": engines_amx,
    "start": start,
    "start-setup": start_setup,
    "four-bits": four_bits,
    "four-bits-setup": four_bits_setup,
    "four-bits-line": four_bits_line,
}
