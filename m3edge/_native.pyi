"""The C++ kernels (native/): what each computes, its twin in _kernels_numpy.py, _dense_numpy.py or
_postings_numpy.py says."""

from collections.abc import Sequence

import numpy as np

def instruction_sets() -> list[str]:
    """The instruction sets this processor has and the binary was built for, best first, "plain" last."""

def instruction_set() -> str:
    """The one in use."""

def set_instruction_set(name: str) -> None:
    """Use another one, in the whole process: for tests and measurements. ValueError when it is not available."""

def maxsim_records(
    query: np.ndarray, records: np.ndarray, bits: int, starts: np.ndarray, counts: np.ndarray, n_threads: int
) -> np.ndarray: ...
def dense_codes(vectors: np.ndarray, n_threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def dense_candidates(
    query: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    errors: np.ndarray,
    allowed: np.ndarray,
    k: int,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray]: ...

class PostingBlock:
    def __init__(
        self,
        n_documents: int,
        tokens: np.ndarray,
        starts: np.ndarray,
        documents: np.ndarray,
        weights: np.ndarray,
        counts: np.ndarray,
        large_at: np.ndarray,
        large_counts: np.ndarray,
    ) -> None: ...
    @property
    def kept_bytes(self) -> int: ...

def query_factors(ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]: ...
def top_postings(
    blocks: Sequence[PostingBlock],
    tokens: np.ndarray,
    factors: np.ndarray,
    norms: np.ndarray | None,
    smallest: np.ndarray | None,
    allowed: np.ndarray,
    k: int,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray]: ...
def score_postings(
    blocks: Sequence[PostingBlock],
    tokens: np.ndarray,
    factors: np.ndarray,
    norms: np.ndarray | None,
    smallest: np.ndarray | None,
    positions: np.ndarray,
) -> np.ndarray: ...
def count_postings(blocks: Sequence[PostingBlock], token: int, allowed: np.ndarray) -> int: ...
def weighted_best(
    dense: np.ndarray | None,
    lexical: np.ndarray | None,
    tokens: np.ndarray | None,
    weights: tuple[float, float, float],
    k: int,
) -> tuple[np.ndarray, np.ndarray]: ...
def row_off_length(vectors: np.ndarray, least: float, most: float) -> int: ...
def lexical_problem(ids: np.ndarray, weights: np.ndarray, counts: np.ndarray, offsets: np.ndarray) -> str: ...
def crc32(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """zlib's."""

def crc32_of_row(row: int, *parts: str | bytes) -> int: ...

class Unigram:
    """Segments words; the definition is the model of Hugging Face's tokenizers of the same name.

    scores: float64 [n_tokens]; first: uint32 [n_nodes + 1]; ids: int32 [n_nodes]; labels: uint8 [n_nodes]: see
        m3edge.vocabulary, whose file they are mapped from
    """

    def __init__(
        self, scores: np.ndarray, first: np.ndarray, ids: np.ndarray, labels: np.ndarray, unknown_id: int
    ) -> None: ...
    def segment(self, words: Sequence[str]) -> np.ndarray:
        """int64 [n], the ids of all words' tokens one after another."""

class Linear:
    """One product's weights as a model folder has them.

    codes: int8 [inputs, outputs]; scales, bias: float32 [outputs]
    """

    def __init__(self, codes: np.ndarray, scales: np.ndarray, bias: np.ndarray | None) -> None: ...

class Product:
    """Products of the same rows, which are multiplied by smoothing, float32 [inputs], and rounded to bytes.

    least: how far below 0 a row goes at most, where that is known; otherwise negative
    """

    def __init__(
        self, linears: Sequence[Linear], smoothing: np.ndarray | None, zero_point: int, least: float
    ) -> None: ...

class Layer:
    def __init__(
        self,
        projections: Product,
        attention_output: Product,
        attention_norm: tuple[np.ndarray, np.ndarray],
        inner: Product,
        output: Product,
        output_norm: tuple[np.ndarray, np.ndarray],
    ) -> None: ...

class Transformer:
    """An encoder with its three heads; what it computes is the int8 graph. ValueError where widths do not fit."""

    def __init__(
        self,
        n_heads: int,
        epsilon: float,
        mean_pooling: bool,
        first_position: int,
        pad_id: int,
        words: tuple[np.ndarray, np.ndarray],
        positions: tuple[np.ndarray, np.ndarray],
        token_type: np.ndarray,
        embedding_norm: tuple[np.ndarray, np.ndarray],
        layers: Sequence[Layer],
        token_head: tuple[np.ndarray, np.ndarray],
        sparse_head: tuple[np.ndarray, float],
        n_threads: int,
    ) -> None: ...
    def run(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        dense: bool,
        sparse: bool,
        tokens: bool,
        n_threads: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dense [batch, width], weights [batch, seq] and token vectors [batch * seq, token width]; of no rows where not
        asked for."""
