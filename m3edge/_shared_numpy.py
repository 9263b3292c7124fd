"""What the numpy kernels share: the check of an argument and the quantization of rows to whole numbers."""

from __future__ import annotations

import numpy as np


def check_array(name: str, array: np.ndarray, dtype: type, ndim: int) -> None:
    """As nanobind does for the native kernels: nothing is converted behind the caller's back."""
    if array.dtype != dtype or array.ndim != ndim or not array.flags.c_contiguous:
        layout = "" if array.flags.c_contiguous else ", not C-contiguous"
        raise TypeError(
            f"{name} must be C-contiguous {np.dtype(dtype)} with {ndim} axes, got {array.dtype} {array.shape}{layout}"
        )


def quantize_rows(vectors: np.ndarray, largest_code: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric quantization, each row by its largest absolute value.

    vectors: float32 [n, dim]; returns codes int8 [n, dim], -largest_code … largest_code, and scales float32 [n]
    """
    largest = np.abs(vectors).max(axis=1, initial=0)
    tiny = largest < 1e-30  # its inverse would overflow; such a row is stored as 0
    limit = np.float32(largest_code)
    inverse = np.where(tiny, np.float32(0), limit / np.where(tiny, np.float32(1), largest))
    codes = np.rint(np.clip(vectors * inverse[:, None], -limit, limit)).astype(np.int8)
    return codes, np.where(tiny, np.float32(0), largest / limit)
