"""What a model's products take in: range, mean and moments of their channels, seen on texts in many languages.

The texts come with the package (data/calibration.jsonl, written for this purpose) or from a file of the user's own.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper
from tokenizers import Tokenizer

from m3edge.errors import FormatError
from m3edge.model_folder import INPUTS
from m3edge.progress import progress_bar
from m3edge_export.quantize import Seen, Statistics

_OWN_TEXTS = files("m3edge_export").joinpath("data", "calibration.jsonl")
_LONGEST = 512  # tokens; outliers sit on certain tokens, not on late ones


def calibration_texts(path: Path | None = None) -> list[str]:
    """The texts of a file, or the package's own: a JSON object with "text" a line, or else a plain text a line.

    Raises FormatError when there is no file, it is not UTF-8, or there is no text in it.
    """
    try:
        # Line by line as a file has them: str.splitlines would also cut at U+2028, which JSON and texts may hold.
        with (_OWN_TEXTS if path is None else path).open(encoding="utf-8-sig") as file:
            texts = [text for line in file if (text := _text_of(line.removesuffix("\n"))).strip()]
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file of calibration texts") from error
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path}: not UTF-8 text ({error}); calibration texts are one text, or JSON, a line"
        ) from error
    if not texts:
        raise FormatError(f"{path}: holds no text; calibration needs some hundred texts like those to be searched")
    return texts


def calibrate(
    model: ModelProto,
    folder: Path,
    names: Sequence[str],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    prefixes: Sequence[str],
    max_length: int,
    with_moments: Container[str] = (),
) -> Statistics:
    """Run the texts, with each of the model's prefixes and with none in turn, through a fused graph and look at some of
    its tensors.

    folder: where the graph's weights lie
    names:  the tensors, float32 [tokens, width]
    with_moments: those of them whose moments are wanted; 4 · width² bytes each
    """
    names = list(dict.fromkeys(names))
    watched = ModelProto.FromString(model.SerializeToString())
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    path = folder / "calibration.onnx"
    onnx.save(watched, path)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        statistics: dict[str, Seen] = {}
        moments = {name: _Moments() for name in names if name in with_moments}
        n_tokens = 0
        texts = [*texts, *_short_texts(texts)]
        prefixes = list(dict.fromkeys([*prefixes, ""]))
        with progress_bar(len(texts), "text", "calibrating", None) as bar:
            for number, text in enumerate(texts):
                prefixed = prefixes[number % len(prefixes)] + text
                ids = np.array([tokenizer.encode(prefixed).ids[: min(_LONGEST, max_length)]], np.int64)
                values = session.run(names, dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True)))
                for name, value in zip(names, values, strict=True):
                    least, largest, total, _ = statistics.get(name, (np.inf, -np.inf, 0.0, None))
                    if name in moments:
                        moments[name].add(value.reshape(-1, value.shape[-1]))
                    statistics[name] = Seen(
                        np.minimum(least, value.min(axis=0)),
                        np.maximum(largest, value.max(axis=0)),
                        total + value.sum(axis=0, dtype=np.float64),
                    )
                n_tokens += ids.size
                bar.update()
        del session, values  # a large model's weights: not in memory beside what follows
    finally:
        path.unlink()
    return {
        name: seen._replace(
            mean=seen.mean / n_tokens, moments=moments[name].mean(n_tokens) if name in moments else None
        )
        for name, seen in statistics.items()
    }


class _Moments:
    """The sum of x xᵀ over rows x that come a few at a time: rows are gathered first, because each addition to the sum
    costs width² numbers, however few the rows."""

    _ENOUGH = 1024  # rows

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._total: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        """rows: float32 [n, width]; kept until there are enough of them"""
        self._rows.append(rows)
        if sum(map(len, self._rows)) >= self._ENOUGH:
            self._take_in()

    def mean(self, n_rows: int) -> np.ndarray:
        """float32 [width, width], the sum divided by n_rows; the last call, for it is divided where it lies"""
        if self._rows:
            self._take_in()
        assert self._total is not None, "no rows were added"
        self._total /= n_rows
        return self._total

    def _take_in(self) -> None:
        gathered = np.concatenate(self._rows)
        self._rows = []
        product = gathered.T @ gathered
        if self._total is None:
            self._total = product
        else:
            self._total += product


def _short_texts(texts: Sequence[str]) -> list[str]:
    """Nothing, single letters and single words: with so few tokens to look at, a model takes in its largest values."""
    words = [text.split(maxsplit=1)[0][:20] for text in texts]
    return ["", *dict.fromkeys(part for word in words for part in (word[0], word))]


def _text_of(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return entry["text"] if isinstance(entry, dict) and isinstance(entry.get("text"), str) else line
