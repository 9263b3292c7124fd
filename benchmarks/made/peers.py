"""m3edge beside its peers: what peers/run.py and full_size.py found."""

from __future__ import annotations

from typing import Any

from m3edge.bench.report import table

from .results import is_there, result

TASKS = ("encode", "maxsim", "dense", "search")


def encode() -> str:
    rows = [
        [
            row["name"], str(row["heads"]), f"{row['query_ms']:.1f}", f"{row['passages_per_s']:.1f}",
            f"{row['m3edge_times_as_fast']:.2f}", f"{row['cosine']:.4f}",
        ]
        for row in _running("encode")
    ]  # fmt: skip
    columns = ["heads", "query ms", "passages/s", "m3edge int8 is × as fast", "cosine to fp32"]
    return table(["encoder, mini's weights", *columns], rows)


def search() -> str:
    rows = [
        [row["name"], f"{row['query_ms']:.1f}", f"{row['m3edge_times_as_fast']:.2f}", f"{row['nDCG@10']:.3f}"]
        for row in _running("search")
    ]
    return table(["search, vectors given", "query ms", "m3edge is × as fast", "nDCG@10"], rows)


def maxsim() -> str:
    rows = [
        [row["name"], f"{row['query_ms']:.2f}", f"{row['m3edge_times_as_fast']:.1f}", f"{row['largest_error']:.5f}"]
        for row in _running("maxsim")
    ]
    return table(["MaxSim, 100 documents", "ms", "m3edge int8 is × as fast", "largest error"], rows)


def dense() -> str:
    rows = [
        [
            row["name"], f"{row['build_s']:.1f}", f"{row['query_ms']:.3f}", f"{row['m3edge_times_as_fast']:.2f}",
            f"{row['recall']:.3f}",
        ]
        for row in _running("dense")
    ]  # fmt: skip
    return table(["dense graph", "build s", "query ms", "m3edge is × as fast", "recall@10"], rows)


def setup() -> str:
    """What each task ran on, and who did not run and why."""
    lines = []
    for name, task in _tasks().items():
        machine = task["machine"]
        lines.append(
            f"- `{name}`: {task['data']}; {task['threads']} threads of an {machine['cpu']}, medians of "
            f"{task['rounds']} rounds, {machine['date']}, commit {machine['commit']}"
        )
        lines += [f"  - {row['name']}: {row['does_not_run']}" for row in task["rows"] if "does_not_run" in row]
    return "\n".join(lines)


def versions() -> str:
    rows = [row for task in _tasks().values() for row in task["rows"] if "version" in row]
    names = {row["name"].split(",")[0].split(" ")[0]: row["version"] for row in rows}
    return ", ".join(f"{name} {version}" for name, version in names.items())


def postings_setup() -> str:
    report = result("postings-500000-m3")
    return f"synthetic texts, {report['postings_a_query_median']:,} postings a query in the median"


def postings() -> str:
    """All on the same postings; our `bm25` is from postings.py, the others from one run of peers/run.py."""
    lines = []
    (bm25,) = (row for row in result("postings-500000-m3")["rows"] if row["name"] == "m3edge bm25")
    for row in _running("postings-500000"):
        found = f"{100 * row['recall']:.1f}" if "recall" in row else ""
        size = f"{row['bytes_a_posting']:.1f}" if "bytes_a_posting" in row else ""
        lines.append([row["name"], f"{row['query_ms']:.2f}", f"{row['p99_ms']:.1f}", found, size])
        if row["name"] == "m3edge":
            lines.append(["m3edge, `bm25`", f"{bm25['median_ms']:.2f}", f"{bm25['p99_ms']:.1f}", "", ""])
    return table(["", "median ms", "p99 ms", "of the 100 best", "bytes a posting"], lines)


def postings_larger() -> str:
    small, large = result("postings-500000-m3"), result("postings-5000000-m3")
    own, ten_times = ({row["name"]: row for row in report["rows"]} for report in (small, large))
    ours, plain = ten_times["m3edge"], ten_times["numpy accumulation"]
    halved = ten_times["m3edge m3, 2 threads"]
    return (
        f"{large['documents']:,} documents: {ours['median_ms']:.1f} ms (p99 {ours['p99_ms']:.1f}), "
        f"{ours['median_ms'] / own['m3edge']['median_ms']:.1f} times as long as {small['documents']:,}, "
        f"{ours['bytes_a_posting']:.1f} bytes a posting, {halved['median_ms']:.1f} ms on two threads; "
        f"numpy {plain['median_ms']:.0f} ms"
    )


def full_size() -> str:
    report = result("full-size")
    titles = {
        "native": "m3edge int8, native", "int8": "m3edge int8, onnxruntime", "openvino": "m3edge int8, OpenVINO",
        "int4": "m3edge int4", "fp32": "m3edge fp32", "peer": "bge-m3-lite int8",
    }  # fmt: skip
    lines = []
    for name, title in titles.items():
        cells = [f"{shape['ms'][name]:.0f}" for shape in report["speed"].values()]
        peak = report["peak_mb"].get(f"{name} 8192 tokens")
        lines.append([title, *cells, f"{report['size_mb'][name]:.0f}", "" if peak is None else f"{peak:.0f}"])
    return table(["graph", *(f"{shape}, ms" for shape in report["speed"]), "MB", "peak MB, 8,192 tokens"], lines)


def _times_the_peer(name: str) -> str:
    """How many times as fast as bge-m3-lite each engine is."""
    speed = result(name)["speed"]
    engines = {"native": "`native`", "int8": "onnxruntime", "openvino": "OpenVINO"}
    return "; ".join(
        f"{title} " + ", ".join(f"{shape} {row[f'{engine}_speed_over']['peer']:.2f}" for shape, row in speed.items())
        for engine, title in engines.items()
    )


def _tasks() -> dict[str, Any]:
    """Those that have been measured."""
    return {name: result(f"peers-{name}") for name in TASKS if is_there(f"peers-{name}")}


def _running(task: str) -> list[dict[str, Any]]:
    return [row for row in result(f"peers-{task}")["rows"] if "does_not_run" not in row]


PARTS = {
    "peers-encode": encode,
    "peers-search": search,
    "peers-maxsim": maxsim,
    "peers-dense": dense,
    "peers-setup": setup,
    "peers-versions": versions,
    "postings": postings,
    "postings-setup": postings_setup,
    "postings-larger": postings_larger,
    "full-size": full_size,
    "full-size-ratios": lambda: _times_the_peer("full-size"),
    "full-size-amx": lambda: _times_the_peer("full-size-amx"),
}
