"""Numbers in 8 bits: weights with a scale for every output, tables with one for every row, ranges of activations."""

from __future__ import annotations

import numpy as np

from m3edge_export.in_turn import Round, round_in_turn

_LARGEST = 127  # of signed bytes; -128 is left out, so that a weight and its negative are as exact
_BLOCK = 128  # inputs
_ROWS = 16_384  # of a table, at a time


def quantize_columns(weight: np.ndarray, moments: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The weights of y = x W, float32 [inputs, outputs], to int8 [inputs, outputs] and float32 [outputs], their scales.

    moments: float [inputs, inputs], of what the product will take: rounds so that y, not W, is met best
    """
    scale = np.maximum(np.abs(weight).max(axis=0) / _LARGEST, 1e-12).astype(np.float32)
    if moments is None:
        return np.rint(weight / scale).astype(np.int8), scale
    quantized = np.empty(weight.shape, np.int8)

    def begin(here: slice, _: np.ndarray) -> Round:
        rows = quantized[here]

        def rounded(place: int, values: np.ndarray) -> np.ndarray:
            rows[place] = np.clip(np.rint(values / scale), -_LARGEST, _LARGEST)
            return rows[place] * scale

        return rounded

    round_in_turn(weight, moments, _BLOCK, begin)
    return quantized, scale


def quantize_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, width] to int8 [rows, width] and float32 [rows, 1], a block of rows at a time."""
    quantized = np.empty(table.shape, np.int8)
    scales = np.empty((len(table), 1), np.float32)
    for start in range(0, len(table), _ROWS):
        rows = slice(start, start + _ROWS)
        scales[rows] = np.maximum(np.abs(table[rows]).max(axis=1, keepdims=True) / _LARGEST, 1e-12)
        quantized[rows] = np.rint(table[rows] / scales[rows])
    return quantized, scales


def byte_range(least: float, largest: float) -> tuple[float, int]:
    """scale and zero point of unsigned bytes that reach from `least` to `largest` and hold 0.0 exactly."""
    least, largest = min(least, 0.0), max(largest, 0.0)
    scale = float(np.float32(max(largest - least, 1e-12) / 255))
    return scale, round(-least / scale)
