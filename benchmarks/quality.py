"""Retrieval quality of a model folder on every BEIR data set below a folder.

    python benchmarks/quality.py models/mini-fp32 ../shared/data/beir --queries 300
    python benchmarks/quality.py models/mini-int8 ../shared/data/beir --queries 300 --provider openvino

Writes benchmarks/results/quality/MODEL.json, or MODEL-PROVIDER.json, after each data set (an interrupted run goes on
where it was) and prints a Markdown table of nDCG@10.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from machine import RESULTS
from reports import resumed, save

from m3edge import Encoder
from m3edge.evaluation import MODES, evaluate, read_beir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, help="a BEIR folder, or a folder of BEIR folders")
    parser.add_argument("--queries", type=int, help="only the first so many judged queries of each set")
    parser.add_argument("--provider", default="auto", help="the engine to run on; its name is then in the result's")
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/quality/MODEL.json")
    options = parser.parse_args()

    encoder = Encoder.load(options.model, options.provider)
    engine = "" if options.provider == "auto" else f"-{options.provider.replace(':', '-')}"
    out = options.out or RESULTS / "quality" / f"{options.model.resolve().name}{engine}.json"
    settings = {
        "model": encoder.info.name,
        "precision": encoder.info.precision,
        "fingerprint": encoder.info.fingerprint,
        "provider": encoder.provider,
        "queries": options.queries,
        "modes": list(MODES),
    }
    report = resumed(out, settings, rows=[])
    folders = [options.data] if (options.data / "corpus.jsonl").exists() else sorted(options.data.iterdir())
    for folder in folders:
        if any(row["dataset"] == folder.name for row in report["rows"]):
            continue
        result = evaluate(encoder, read_beir(folder, n_queries=options.queries), progress=None)
        report["rows"].append(result.to_json())
        save(out, report)
        print(table([result.to_json()]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(report["rows"]))


def table(rows: list[dict[str, Any]], metric: str = "nDCG@10") -> str:
    """The rows as a Markdown table of one metric, their mean last."""
    lines = ["| data set | documents | queries | " + " | ".join(MODES) + " |", "|---|" + "--:|" * (2 + len(MODES))]
    for row in rows:
        values = " | ".join(f"{row['modes'][mode][metric]:.3f}" for mode in MODES)
        lines.append(f"| {row['dataset']} | {row['documents']} | {row['queries']} | {values} |")
    if len(rows) > 1:
        means = (sum(row["modes"][mode][metric] for row in rows) / len(rows) for mode in MODES)
        lines.append("| **mean** | | | " + " | ".join(f"**{mean:.3f}**" for mean in means) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
