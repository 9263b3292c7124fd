"""Chooses, once and for all others, which kernels run: the native ones, or their numpy twins.

Native where the installation found a compiler; the environment variable M3EDGE_KERNELS=numpy takes the twins all the
same, and M3EDGE_KERNELS=plain, avx2, … a lesser instruction set than the processor's best.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from m3edge import _kernels_numpy


def _choose(wanted: str) -> tuple[ModuleType, str]:
    """The module with the kernels, and how to call them in a report."""
    if wanted == "numpy":
        return _kernels_numpy, "numpy (M3EDGE_KERNELS)"
    try:
        from m3edge import _native
    except ImportError as error:
        if wanted:
            raise ImportError(f"M3EDGE_KERNELS={wanted}, but the native kernels are not installed ({error})") from error
        return _kernels_numpy, "numpy (no compiler at install)"
    if wanted:
        try:
            _native.set_instruction_set(wanted)
        except ValueError as error:
            known = ", ".join(["numpy", *_native.instruction_sets()])
            raise ValueError(f"M3EDGE_KERNELS must be one of {known}, got {wanted!r}") from error
    return _native, f"native ({_native.instruction_set()})"


_kernels, DESCRIPTION = _choose(os.environ.get("M3EDGE_KERNELS", ""))

maxsim_records = _kernels.maxsim_records
dense_codes = _kernels.dense_codes
dense_candidates = _kernels.dense_candidates
dense_scores = _kernels.dense_scores
GraphLinks = _kernels.GraphLinks
PostingBlock = _kernels.PostingBlock
query_factors = _kernels.query_factors
top_postings = _kernels.top_postings
score_postings = _kernels.score_postings
count_postings = _kernels.count_postings
hybrid_scores = _kernels.hybrid_scores
weighted_best = _kernels.weighted_best
row_off_length = _kernels.row_off_length
lexical_problem = _kernels.lexical_problem
crc32 = _kernels.crc32
crc32_of_row = _kernels.crc32_of_row

# Without a twin: Hugging Face's tokenizers, from which it saves the parsing, is its definition and stands in for it.
Unigram: Any = getattr(_kernels, "Unigram", None)
# Likewise the int8 graph, on onnxruntime, for m3edge's own engine.
instruction_set: Any = getattr(_kernels, "instruction_set", None)
Linear: Any = getattr(_kernels, "Linear", None)
Product: Any = getattr(_kernels, "Product", None)
Layer: Any = getattr(_kernels, "Layer", None)
Transformer: Any = getattr(_kernels, "Transformer", None)
