"""Rounding a product's inputs one after the other, each taking over what the ones before it have lost.

Of what a product will be multiplied with it needs to know the moments (GPTQ, arXiv 2210.17323). What a weight may be
rounded to is four_bits' and eight_bits' to say.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_DAMPING = 0.01  # GPTQ's: of the mean of the diagonal

# An input's place in its block and its weights as they are now, float32 [outputs] -> what stands for them, likewise
Round = Callable[[int, np.ndarray], np.ndarray]


def round_in_turn(
    weight: np.ndarray, moments: np.ndarray, block: int, begin: Callable[[slice, np.ndarray], Round]
) -> None:
    """Go through the weights of y = W x, some inputs at a time.

    weight:  float [outputs, inputs]
    moments: float [inputs, inputs], the mean or the sum of x xᵀ
    block:   inputs that are begun together
    begin:   takes which inputs these are and their weights as they are now, float32 [outputs, block]
    """
    rest = np.array(weight, np.float32)
    spread = _spread(moments)
    for start in range(0, rest.shape[1], block):
        here = slice(start, start + block)
        values, own = rest[:, here], spread[here, here]
        rounded = begin(here, values)
        lost = np.empty_like(values)
        for i in range(values.shape[1]):
            lost[:, i] = (values[:, i] - rounded(i, values[:, i])) / own[i, i]
            values[:, i + 1 :] -= lost[:, i, None] * own[i, i + 1 :]
        rest[:, here.stop :] -= lost @ spread[here, here.stop :]


def _spread(moments: np.ndarray) -> np.ndarray:
    """How those behind an input take over what it loses: the upper Cholesky factor of the moments' inverse."""
    damped = np.array(moments, np.float64)
    diagonal = np.diag_indices_from(damped)
    damped[diagonal] += _DAMPING * max(float(damped[diagonal].mean()), 1e-30)
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
