"""MKQA as the paper counts it: Recall@100 and @20, where a passage is right when it holds one of a question's answers.

    python benchmarks/mkqa.py bge-m3-int8 nq/corpus.jsonl MKQA/de.jsonl MKQA/zh_cn.jsonl

The corpus is that of NQ in the BEIR layout; a file of questions has an object with "question" and "answers", a list,
on each line. Writes benchmarks/results/mkqa-MODEL.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, describe_machine

from m3edge import Encoder
from m3edge.bench.report import table
from m3edge.corpus import EncodedCorpus, query_parts
from m3edge.files import write_atomically
from m3edge.jsonl import joined_text, read_jsonl, required_string

METHODS = ("bm25", "dense", "sparse", "tokens", "dense+sparse", "all")
DEPTHS = (20, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("corpus", type=Path, help="corpus.jsonl")
    parser.add_argument("questions", type=Path, nargs="+", help="a file for each language")
    parser.add_argument("--queries", type=int, help="only the first so many questions of each file")
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/mkqa-MODEL.json")
    options = parser.parse_args()

    encoder = Encoder.load(options.model)
    texts = [joined_text(where, entry) for where, entry in read_jsonl(options.corpus)]
    plain = [normalized(text) for text in texts]
    rows: list[dict[str, Any]] = []
    with EncodedCorpus(encoder, texts, progress=None) as corpus:
        for path in options.questions:
            asked = [
                (required_string(where, entry, "question"), entry["answers"]) for where, entry in read_jsonl(path)
            ][: options.queries]
            queries = encoder.encode_queries([question for question, _ in asked], progress=None)
            hits = {method: dict.fromkeys(DEPTHS, 0) for method in METHODS}
            for i, (_, answers) in enumerate(asked):
                rankings = corpus.rank(*query_parts(queries[i]))
                for method in METHODS:
                    first = first_right(plain, rankings[method][0], answers)
                    for depth in DEPTHS:
                        hits[method][depth] += first is not None and first < depth
            recalls = {f"R@{d}": {method: round(hits[method][d] / len(asked), 4) for method in METHODS} for d in DEPTHS}
            rows.append({"language": path.stem, "questions": len(asked), **recalls})
    report = {"fingerprint": encoder.info.fingerprint, "machine": describe_machine(), "rows": rows}
    out = options.out or RESULTS / f"mkqa-{options.model.resolve().name}.json"
    write_atomically(out, json.dumps(report, indent=1).encode() + b"\n")
    print(
        table(
            ["Recall@100", *(row["language"] for row in rows)],
            [[method, *(f"{row['R@100'][method]:.3f}" for row in rows)] for method in METHODS],
        )
    )


def first_right(plain: Sequence[str], positions: np.ndarray, answers: Sequence[str]) -> int | None:
    """The rank, from 0, of the first passage that holds an answer as whole words; None when none does."""
    patterns = [re.compile(rf"\b{re.escape(normalized(answer))}\b") for answer in answers if answer]
    for rank, position in enumerate(positions.tolist()):
        if any(pattern.search(plain[position]) for pattern in patterns):
            return rank
    return None


def normalized(text: str) -> str:
    """Lower case, one form of every character, single spaces."""
    return " ".join(unicodedata.normalize("NFD", text).lower().split())


if __name__ == "__main__":
    main()
