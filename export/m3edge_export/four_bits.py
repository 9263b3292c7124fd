"""Weights in 4 bits, 32 of them to a scale: which scales, and which way to round.

A value is (bits - 8) · scale, the scale of either sign, so -8 · scale can be the largest or the smallest of a block.
Tables take the scale that loses least; products know from calibration what they will be multiplied with, and round one
input after the other, as in_turn does.
"""

from __future__ import annotations

import numpy as np

from m3edge_export.in_turn import Round, round_in_turn

BLOCK = 32  # weights that share a scale
# Of the scale at which the largest value is met exactly. Less cuts that value off and is finer for the others.
_SHRINKING = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
_CHUNK = 1 << 20  # weights searched at a time


def quantize_table(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, width] to uint8 [rows, width / 32, 16], two values a byte, and float32 [rows, width / 32]."""
    n_blocks = _n_blocks(table.shape[1])
    packed = np.empty((len(table), n_blocks, BLOCK // 2), np.uint8)
    scales = np.empty((len(table), n_blocks), np.float32)
    step = max(1, _CHUNK // table.shape[1])
    for start in range(0, len(table), step):
        blocks = np.asarray(table[start : start + step]).reshape(-1, n_blocks, BLOCK)
        scale = best_scales(blocks)
        packed[start : start + step] = _pack(_round(blocks, scale))
        scales[start : start + step] = scale
    return packed, scales


def quantize_product(weight: np.ndarray, moments: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The weights of y = W x, float32 [outputs, inputs], in the same form as a table.

    moments: float [inputs, inputs], the mean or the sum of x xᵀ over calibration's tokens; without, as a table
    """
    if moments is None:
        return quantize_table(weight)
    n_blocks = _n_blocks(weight.shape[1])
    scales = np.empty((len(weight), n_blocks), np.float32)
    importance = np.maximum(np.diag(moments), 1e-12 * np.max(np.diag(moments)) + 1e-30).astype(np.float32)
    bits = np.empty((len(weight), n_blocks, BLOCK), np.uint8)

    def begin(here: slice, values: np.ndarray) -> Round:
        number = here.start // BLOCK
        scale = scales[:, number] = best_scales(values.T[:, None], importance[here])[:, 0]

        def rounded(place: int, column: np.ndarray) -> np.ndarray:
            chosen = bits[:, number, place] = _round(column[:, None, None], scale[:, None])[:, 0, 0]
            return (chosen - np.float32(8)) * scale

        return rounded

    round_in_turn(weight.T, moments, BLOCK, begin)
    return _pack(bits), scales


def best_scales(blocks: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """The scale of each block that loses least, of some that are tried.

    blocks: float32 [rows, blocks, 32]; importance: float32 [32], the weight of each place's squared error
    returns float32 [rows, blocks]
    """
    weights = np.ones(BLOCK, np.float32) if importance is None else importance / importance.mean()
    place = np.abs(blocks).argmax(axis=2)[..., None]
    largest = np.take_along_axis(blocks, place, axis=2)[..., 0]
    best = np.zeros(largest.shape, np.float32)
    least = (np.square(blocks) * weights).sum(axis=2)
    for end in (-8, 7):
        for shrinking in _SHRINKING:
            scale = (largest / end * np.float32(shrinking)).astype(np.float32)
            values = _round(blocks, scale) - np.float32(8)
            # For these values, the scale that fits them best.
            fit = (blocks * values * weights).sum(axis=2)
            norm = (values * values * weights).sum(axis=2)
            scale = np.divide(fit, norm, out=np.zeros_like(fit), where=norm > 0)
            error = (np.square(blocks - values * scale[..., None]) * weights).sum(axis=2)
            better = error < least
            best[better], least[better] = scale[better], error[better]
    return best


def _n_blocks(width: int) -> int:
    if width % BLOCK:
        raise ValueError(f"int4 needs a width that is a multiple of {BLOCK}, got {width}")
    return width // BLOCK


def _round(blocks: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """uint8 [rows, blocks, n], the nearest of the 16 values; scale: float32 [rows, blocks]"""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return np.clip(np.rint(blocks * inverse[..., None]) + 8, 0, 15).astype(np.uint8)


def _pack(bits: np.ndarray) -> np.ndarray:
    return bits[..., 0::2] | (bits[..., 1::2] << 4)
