"""MIRACL and MLDR by mteb's own tasks, ranked by m3edge's whole search in each of the paper's ways.

    python benchmarks/bge_m3.py bge-m3-int8 --tasks MultiLongDocRetrieval --languages eng

Needs mteb, the hub and a model folder of BAAI/bge-m3; see bge_m3.md. Writes benchmarks/results/bge-m3-MODEL.json after
each way (an interrupted run goes on where it was).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from machine import RESULTS
from reports import resumed, save

from m3edge import Encoder
from m3edge.mteb import MtebSearch

# The paper's rows: weights of dense, sparse, tokens; those for long documents; the lexical score.
WAYS = {
    "BM25": ((0, 1, 0), (0, 1, 0), "bm25"),
    "Dense": ((1, 0, 0), (1, 0, 0), "m3"),
    "Sparse": ((0, 1, 0), (0, 1, 0), "m3"),
    "Multi-vec": ((0, 0, 1), (0, 0, 1), "m3"),
    "Dense+Sparse": ((1, 0.3, 0), (0.2, 0.8, 0), "m3"),
    "All": ((1, 0.3, 1), (0.15, 0.5, 0.35), "m3"),
}
LONG = ("MultiLongDocRetrieval",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--tasks", nargs="+", default=["MIRACLRetrieval", *LONG], help="mteb's names; %(default)s")
    parser.add_argument("--languages", nargs="+", metavar="ISO", help="three letters each; by default all of a task")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--mcls", type=int, metavar="N", help="MCLS every N tokens; the paper takes 256")
    options = parser.parse_args()

    import mteb

    encoder = Encoder.load(options.model, mcls_interval=options.mcls)
    out = RESULTS / f"bge-m3-{options.model.resolve().name}{'-mcls' if options.mcls else ''}.json"
    report = resumed(out, {"fingerprint": encoder.info.fingerprint}, rows=[])
    for task in mteb.get_tasks(tasks=options.tasks, languages=options.languages):
        for way in options.ways:
            name = {"task": task.metadata.name, "languages": options.languages, "way": way}
            if any({key: row[key] for key in name} == name for row in report["rows"]):
                continue
            usual, long, lexical = WAYS[way]
            weights = long if task.metadata.name in LONG else usual
            codec = "int8" if weights[2] else "none"  # what is not compared need not be kept
            search = MtebSearch(encoder, weights=weights, lexical=lexical, token_codec=codec)
            (result,) = mteb.evaluate(search, task, cache=None)
            search.close()
            scores = {
                entry["hf_subset"]: {key: entry[key] for key in ("ndcg_at_10", "recall_at_100")}
                for entry in result.scores[task.eval_splits[-1]]
            }
            report["rows"].append({**name, "scores": scores})
            save(out, report)
            print(json.dumps(report["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
