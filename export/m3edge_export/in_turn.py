"""Rounding a product's inputs one after the other, each taking over what the ones before it have lost.

Of what a product will be multiplied with it needs to know the moments (GPTQ, arXiv 2210.17323). What a weight may be
rounded to is four_bits' and eight_bits' to say.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

_DAMPING = 0.01  # GPTQ's: of the mean of the diagonal
# Each input's loss is spread at once over those of its own step, which the cache holds, at the step's end over those of
# its stretch, and at the stretch's end over all others: the same sums, most of them in large products.
_STEP, _STRETCH = 32, 128

# An input's place in its block and its weights as they are now, float32 [outputs] -> what stands for them, likewise
Round = Callable[[int, np.ndarray], np.ndarray]


def round_in_turn(
    weight: np.ndarray, moments: np.ndarray, block: int, begin: Callable[[slice, np.ndarray], Round]
) -> None:
    """Go through the weights of y = x W, some inputs at a time.

    weight:  float [inputs, outputs]
    moments: float [inputs, inputs], the mean or the sum of xᵀ x
    block:   inputs that are begun together, a multiple of 32 that divides 128
    begin:   takes which inputs these are and their weights as they are now, float32 [block, outputs]
    """
    rest = np.array(weight, np.float32, order="C")
    spread = _spread(moments)
    n = len(rest)
    for start in range(0, n, _STRETCH):
        end = min(start + _STRETCH, n)
        lost = np.empty((end - start, rest.shape[1]), np.float32)
        for first in range(start, end, _STEP):
            last = min(first + _STEP, end)
            if first % block == 0:
                here = slice(first, min(first + block, n))
                rounded = begin(here, rest[here])
            for i in range(first, last):
                lost[i - start] = (rest[i] - rounded(i - here.start, rest[i])) / spread[i, i]
                rest[i + 1 : last] -= spread[i, i + 1 : last, None] * lost[i - start]
            rest[last:end] -= spread[first:last, last:end].T @ lost[first - start : last - start]
        rest[end:] -= spread[start:end, end:].T @ lost


def _spread(moments: np.ndarray) -> np.ndarray:
    """How those behind an input take over what it loses: the upper Cholesky factor of the moments' inverse."""
    damped = np.array(moments, np.float64)
    diagonal = np.diag_indices_from(damped)
    damped[diagonal] += _DAMPING * max(float(damped[diagonal].mean()), 1e-30)
    # With damped = U Uᵀ, U upper, its inverse is U⁻ᵀ U⁻¹: U⁻¹ is the factor, for half the work of inverting first.
    upper = torch.linalg.cholesky(torch.from_numpy(damped).flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(damped), dtype=torch.float64)
    return torch.linalg.solve_triangular(upper, identity, upper=True).numpy().astype(np.float32)
