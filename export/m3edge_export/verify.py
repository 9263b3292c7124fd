"""Does an ONNX graph compute what the PyTorch model computes? Measured on texts in many scripts and of every length.

Compares the three outputs on the positions that hold tokens (what a graph puts on padding is nobody's business), text
by text and in padded batches, and writes parity.json.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from tokenizers import Tokenizer

from m3edge import native_engine, openvino_engine
from m3edge.cpu import available_cpus
from m3edge.files import write_atomically
from m3edge.model_folder import DENSE_OUTPUT, PARITY, SPARSE_OUTPUT, TOKENIZER, TOKENS_OUTPUT
from m3edge.onnxruntime_engine import OnnxruntimeSession, session_options
from m3edge.session import Session, open_session
from m3edge_export.checkpoint import Checkpoint
from m3edge_export.errors import ParityError
from m3edge_export.model import M3Model
from m3edge_export.tokenizer_file import read_tokenizer

_OUTPUTS = (DENSE_OUTPUT, SPARSE_OUTPUT, TOKENS_OUTPUT)
# Tokens. One layer's attention over 8,192 would take 4 GB for 16 heads, in PyTorch and again in ONNX.
_LONGEST_CHECKED = 2048
_LONGEST_OF_FUSED = 256

# One sentence in each of these languages, written for this purpose.
TEXTS = {
    "en": "How do I compress a file without losing its modification time?",
    "de": "Wie komprimiere ich eine Datei, ohne dass sich ihr Änderungsdatum ändert?",
    "es": "¿Cómo comprimo un archivo sin que cambie su fecha de modificación?",
    "ru": "Как сжать файл, не меняя времени его последнего изменения?",
    "zh": "如何压缩文件而不改变其修改时间？",
    "ja": "更新日時を変えずにファイルを圧縮するにはどうすればよいですか。",
    "ar": "كيف أضغط ملفا دون أن يتغير تاريخ تعديله؟",
    "hi": "फ़ाइल को उसका बदलाव समय बदले बिना कैसे संपीड़ित करूँ?",
    "th": "จะบีบอัดไฟล์โดยไม่เปลี่ยนเวลาแก้ไขได้อย่างไร",
    "sw": "Ninawezaje kubana faili bila kubadilisha wakati wake wa marekebisho?",
}


class Tolerance(NamedTuple):
    """max_abs: largest absolute difference of any output; cosine: smallest of dense and token vectors."""

    max_abs: float
    cosine: float


# What a graph may differ by before it is taken for broken; how good a precision is, the report says.
TOLERANCES = {
    "fp32": Tolerance(1e-4, 0.9999),
    "fp16": Tolerance(np.inf, 0.999),
    "int8": Tolerance(np.inf, 0.98),
    "int4": Tolerance(np.inf, 0.5),
}
# The static graph's: a single token beyond what calibration saw is cut off, and may come out as far off as this.
_STATIC_TOLERANCE = Tolerance(np.inf, 0.9)

Outputs = dict[str, np.ndarray]  # output's name -> its values for a batch


class Case(NamedTuple):
    """One comparison: a batch of token ids, padded to its longest row."""

    name: str
    rows: list[list[int]]


class Differences(NamedTuple):
    """How far apart the two models are on one case.

    max_abs: output's name -> largest absolute difference on a position that holds a token
    cosine:  smallest cosine between two dense vectors or two token vectors that should be the same
    """

    case: str
    shape: tuple[int, int]
    max_abs: dict[str, float]
    cosine: float


class Reference(NamedTuple):
    """What the PyTorch model gives: every precision is compared with it, after the model has been let go.

    max_length: tokens of its longest text
    """

    max_length: int
    pad_id: int
    cases: list[Case]
    outputs: list[Outputs]


def reference_outputs(checkpoint: Checkpoint) -> Reference:
    """Run every case through the PyTorch model."""
    cases = verification_cases(read_tokenizer(checkpoint.folder / TOKENIZER), checkpoint.settings.max_length)
    pad_id = checkpoint.special_ids().pad
    return Reference(
        checkpoint.settings.max_length,
        pad_id,
        cases,
        [expected_outputs(checkpoint.model, case, pad_id) for case in cases],
    )


def verify(folder: Path, reference: Reference, precision: str, notes: Mapping[str, Any]) -> dict[str, float]:
    """Compare the graphs in `folder` with the model, write parity.json there, and return its headline figures.

    The static graph's part of parity.json, "openvino", is left out where OpenVINO is not installed, and "native" where
    m3edge's own engine is not.
    notes: what else parity.json is to say
    Raises ParityError when any output of any case is further off than the precision's tolerance.
    """
    providers = engines(folder)
    measured = {
        provider: _measure(
            open_session(folder, provider, max_length=reference.max_length),
            reference,
            f"{precision} graph on {provider}",
        )
        for provider in providers
    }
    report = {**parity_report(measured["cpu"], precision), **notes}
    report |= {provider: _figures(measured[provider]) for provider in providers[1:]}
    write_atomically(folder / PARITY, json.dumps(report, indent=2).encode() + b"\n")
    for provider, differences in measured.items():
        _require(differences, precision, _STATIC_TOLERANCE if provider == "openvino" else TOLERANCES[precision])
    headline: dict[str, float] = dict(report["worst"])
    for provider in providers[1:]:
        headline[f"{provider}_min_cosine"] = report[provider]["worst"]["min_cosine"]
    return headline


def engines(folder: Path) -> list[str]:
    """The CPU engines that are installed and run this folder, onnxruntime's first."""
    others = [engine.NAME for engine in (native_engine, openvino_engine) if engine.runs_int8(folder)]
    return ["cpu", *others]


def verify_fused(model: ModelProto, folder: Path, reference: Reference) -> None:
    """Compare a fused graph, whose weights lie in `folder`, with the model before anything is made of it.

    The lower precisions' tolerances let through a graph that is wrong and no more than similar. The longest text is
    left to the precisions themselves: short ones show the same, and take a large model some seconds.
    Raises ParityError when an output is further off than fp32's tolerance.
    """
    path = folder / "fused.onnx"
    onnx.save(model, path)
    try:
        session = OnnxruntimeSession(open_graph(path), "cpu", available_cpus())
        short = [
            (case, expected)
            for case, expected in zip(reference.cases, reference.outputs, strict=True)
            if max(map(len, case.rows)) <= _LONGEST_OF_FUSED
        ]
        measured = [compare(session, case, expected, reference.pad_id, "fused graph") for case, expected in short]
    finally:
        path.unlink()
    _require(measured, "fused", TOLERANCES["fp32"])


def _measure(session: Session, reference: Reference, graph: str) -> list[Differences]:
    return [
        compare(session, case, expected, reference.pad_id, graph)
        for case, expected in zip(reference.cases, reference.outputs, strict=True)
    ]


def _require(measured: Sequence[Differences], precision: str, tolerance: Tolerance) -> None:
    # np.argmax and np.argmin find a nan first, where max() and min() may pass it by.
    worst = measured[int(np.argmax([np.max(list(item.max_abs.values())) for item in measured]))]
    name = list(worst.max_abs)[int(np.argmax(list(worst.max_abs.values())))]
    if not worst.max_abs[name] <= tolerance.max_abs:
        raise ParityError(
            f"the ONNX graph differs from the PyTorch model by {worst.max_abs[name]:.2e} in {name} on {worst.case!r}; "
            f"at most {tolerance.max_abs:.0e} is allowed, so no model folder was written"
        )
    worst = measured[int(np.argmin([item.cosine for item in measured]))]
    if not worst.cosine >= tolerance.cosine:
        raise ParityError(
            f"the {precision} graph's vectors differ from the PyTorch model's: cosine {worst.cosine:.4f} on "
            f"{worst.case!r}, at least {tolerance.cosine} is expected, so no model folder was written"
        )


def verification_cases(tokenizer: Tokenizer, max_length: int) -> list[Case]:
    """The texts as token rows: each language alone, the extremes of length, and padded batches."""
    encoded = {language: _encode(tokenizer, text, max_length) for language, text in TEXTS.items()}
    words = " ".join(TEXTS.values())
    longest = _encode(tokenizer, words * (1 + max_length // 100), min(max_length, _LONGEST_CHECKED))
    empty, short = _encode(tokenizer, "", max_length), _encode(tokenizer, "a", max_length)
    return [
        *(Case(language, [row]) for language, row in encoded.items()),
        Case("empty text", [empty]),
        Case("one letter", [short]),
        Case("one token", [empty[:1]]),
        Case(f"{len(longest)} tokens", [longest]),
        Case("batch of all languages", list(encoded.values())),
        Case("batch of empty and long", [empty, short, longest[:200]]),
        Case("batch of equal lengths", [longest[:32], longest[32:64] or longest[:32]]),
    ]


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """A graph outside a model folder on the CPU, with the options that the runtime gives it."""
    options = session_options(onnxruntime, available_cpus())
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def expected_outputs(model: M3Model, case: Case, pad_id: int) -> Outputs:
    """What the PyTorch model gives for one case."""
    ids, mask = _pad(case.rows, pad_id)
    with torch.no_grad():
        output = model(torch.from_numpy(ids), torch.from_numpy(mask))
    return {name: getattr(output, name).numpy() for name in _OUTPUTS}


def compare(session: Session, case: Case, expected: Outputs, pad_id: int, graph: str = "ONNX graph") -> Differences:
    """Run one case through the graph and hold it against what was expected.

    graph: what an error calls the graph
    Raises ParityError when the graph, or the model itself, gives a value that is not a number.
    """
    ids, mask = _pad(case.rows, pad_id)
    actual = dict(zip(_OUTPUTS, session.run(ids, mask, _OUTPUTS), strict=True))
    held = mask.astype(bool)
    max_abs, cosines = {}, [1.0]
    for name in _OUTPUTS:
        ours, theirs = actual[name], expected[name]
        if name != DENSE_OUTPUT:
            ours, theirs = ours[held], theirs[held]
        for whose, values in (("PyTorch model", theirs), (graph, ours)):
            if not np.isfinite(values).all():
                raise ParityError(
                    f"the {whose} gives values in {name} that are not finite numbers, on {case.name!r}; "
                    "no model folder was written"
                )
        max_abs[name] = float(np.max(np.abs(ours - theirs)))
        if name != SPARSE_OUTPUT:  # unit vectors: the product is the cosine
            cosines.append(float(np.min((ours * theirs).sum(axis=-1))))
    return Differences(case.name, (ids.shape[0], ids.shape[1]), max_abs, float(np.min(cosines)))


def parity_report(measured: Sequence[Differences], precision: str) -> dict[str, Any]:
    """What parity.json holds of the graph that onnxruntime runs."""
    return {
        "reference": "the PyTorch model in float32",
        "precision": precision,
        "tolerance": {name: value for name, value in TOLERANCES[precision]._asdict().items() if np.isfinite(value)},
        **_figures(measured),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnx")}
        | {"onnxruntime": onnxruntime.__version__},
    }


def _figures(measured: Sequence[Differences]) -> dict[str, Any]:
    """One engine's worst figures and every case's."""
    worst = {f"max_abs_{name}": float(np.max([item.max_abs[name] for item in measured])) for name in _OUTPUTS}
    worst["min_cosine"] = float(np.min([item.cosine for item in measured]))
    cases = [
        {"case": item.case, "batch": item.shape[0], "tokens": item.shape[1], "max_abs": item.max_abs,
         "min_cosine": item.cosine}
        for item in measured
    ]  # fmt: skip
    return {"worst": worst, "cases": cases}


def _encode(tokenizer: Tokenizer, text: str, max_length: int) -> list[int]:
    ids: list[int] = tokenizer.encode(text).ids
    return ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]


def _pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(rows), max(len(row) for row in rows))
    ids, mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
