"""How near each precision's vectors are to full precision's, on a thousand texts in twelve languages.

    python benchmarks/fidelity.py models/mini-fp32 models/mini-fp16 models/mini-int8 models/mini-int4

The texts are XQuAD's, 60 passages and 24 questions a language, from ../shared/data; none of them is a calibration text.
The reference is the fp32 graph, which the export compares with PyTorch (parity.json: 5e-7 at most on the mini model).
Writes benchmarks/results/fidelity-MODEL.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

from m3edge_export.report import fidelity
from machine import RESULTS, ROOT, describe_machine

from m3edge import Encoder
from m3edge.files import write_atomically
from m3edge.model_folder import STATIC_GRAPH

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
PASSAGES, QUESTIONS = 60, 24
DATA = ROOT.parent / "shared" / "data" / "beir"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model folders of one model, one of them in fp32")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    texts = read_texts(options.data)
    encoders = {}
    for folder in options.models:
        encoder = Encoder.load(folder, "cpu")
        encoders[encoder.info.precision] = encoder
        if (folder / STATIC_GRAPH).is_file():
            encoders[f"{encoder.info.precision}, static, on OpenVINO"] = Encoder.load(folder, "openvino")
    if len({encoder.info.fingerprint for encoder in encoders.values()}) > 1:
        parser.error("the folders hold different models")
    if "fp32" not in encoders:
        parser.error("one of the folders must be in fp32")
    reference = encoders.pop("fp32")
    expected = reference.encode_passages(texts)
    rows = {name: fidelity(expected, encoder.encode_passages(texts))._asdict() for name, encoder in encoders.items()}
    report = {"machine": describe_machine(), "texts": len(texts), "languages": LANGUAGES, "precisions": rows}
    out = RESULTS / f"fidelity-{reference.info.name}.json"
    write_atomically(out, json.dumps(report, indent=1).encode() + b"\n")
    print("| | " + " | ".join(next(iter(rows.values()))) + " |")
    for precision, row in rows.items():
        print(f"| {precision} | " + " | ".join(f"{value:.5f}" for value in row.values()) + " |")


def read_texts(data: Path, passages: int | None = None, questions: int | None = None) -> list[str]:
    """The first passages and questions of each language; by default PASSAGES and QUESTIONS."""
    counts = {
        "corpus.jsonl": PASSAGES if passages is None else passages,
        "queries.jsonl": QUESTIONS if questions is None else questions,
    }
    texts = []
    for language in LANGUAGES:
        for name, count in counts.items():
            with (data / f"xquad-{language}" / name).open(encoding="utf-8") as file:
                texts += [json.loads(line)["text"] for line in islice(file, count)]
    return texts


if __name__ == "__main__":
    main()
