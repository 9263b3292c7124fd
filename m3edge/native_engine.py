"""A model folder's int8 weights on m3edge's own engine: an encoder in C++, for CPUs.

It computes what the int8 graph computes, without padding, and without an import, a parser or a compiler between a
program's start and its first vector.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3edge import kernels
from m3edge.errors import FormatError, ProviderError
from m3edge.model_folder import DENSE_OUTPUT, LAYERS, SPARSE_OUTPUT, TOKENS_OUTPUT, WEIGHTS

NAME = "native"
# On these it was measured to be faster than the other engines.
_FAST = ("avx-vnni", "avx512-vnni", "amx-int8")
_DTYPES = ("int8", "float32")
_ALIGNMENT = 64  # bytes: where the export puts an array


class NativeSession:
    """A transformer of the native kernels; see session.Session.

    A text's results are the same bit for bit in every batch and with every number of threads.
    """

    provider = NAME

    def __init__(self, transformer: Any, n_threads: int) -> None:
        self._transformer = transformer
        self.n_threads = n_threads

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one batch; see session.Session. Raises ValueError for an id that the vocabulary has not."""
        wanted = [name in outputs for name in (DENSE_OUTPUT, SPARSE_OUTPUT, TOKENS_OUTPUT)]
        dense, weights, tokens = self._transformer.run(input_ids, attention_mask, *wanted, self.n_threads)
        tokens = tokens.reshape(*input_ids.shape, -1) if wanted[2] else tokens
        results = {DENSE_OUTPUT: dense, SPARSE_OUTPUT: weights, TOKENS_OUTPUT: tokens}
        return [results[name] for name in outputs]


def runs_int8(folder: Path) -> bool:
    """Whether this engine is here and the folder has a list of layers for it."""
    return kernels.Transformer is not None and (folder / LAYERS).is_file()


def gains(folder: Path) -> bool:
    """Whether the kernels and the folder are such that this engine was measured to be the fastest on the CPU."""
    return runs_int8(folder) and kernels.instruction_set() in _FAST


def open_native(folder: Path, n_threads: int) -> NativeSession:
    """Map a model folder's weights and bring them into the order in which the kernels take them.

    Raises ProviderError without native kernels, FormatError for a folder that has no list of layers or whose list does
    not fit its weights.
    """
    if kernels.Transformer is None:
        raise ProviderError(
            f"provider {NAME!r} needs m3edge's native kernels, which this installation runs without "
            f"({kernels.DESCRIPTION}); install a C++ compiler and m3edge again, or take provider 'cpu'"
        )
    path = (folder / LAYERS).resolve()
    if not path.is_file():
        raise FormatError(
            f"{folder}: has no {LAYERS}, which provider {NAME!r} needs; export the model again with "
            "`--precision int8`, or take provider 'cpu'"
        )
    try:
        transformer = _read(json.loads(path.read_bytes()), path.with_name(WEIGHTS), n_threads)
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise FormatError(f"{path}: does not fit {WEIGHTS} ({reason}); export the model again") from error
    return NativeSession(transformer, n_threads)


def _read(layers: dict[str, Any], weights: Path, n_threads: int) -> Any:
    """The transformer that a list of layers describes."""
    with weights.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    file = np.frombuffer(mapped, np.uint8)

    def array(of: dict[str, Any]) -> np.ndarray:
        if of["dtype"] not in _DTYPES or of["offset"] < 0 or of["offset"] % _ALIGNMENT:
            raise ValueError(f"an array of {of['dtype']!r} at {of['offset']}")
        return np.ndarray(of["shape"], of["dtype"], file, of["offset"])  # a TypeError where the file has less

    def maybe(of: dict[str, Any] | None) -> np.ndarray | None:
        return None if of is None else array(of)

    def pair(of: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return array(of["weights"]), array(of["biases"])

    def table(of: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return array(of["codes"]), array(of["scales"]).reshape(-1)

    def product(of: dict[str, Any]) -> Any:
        linears = [kernels.Linear(array(it["codes"]), array(it["scales"]), maybe(it["bias"])) for it in of["linears"]]
        least = -1.0 if of["least"] is None else of["least"]
        return kernels.Product(linears, maybe(of["smoothing"]), of["zero_point"], least)

    def layer(of: dict[str, Any]) -> Any:
        return kernels.Layer(
            product(of["projections"]),
            product(of["attention_output"]),
            pair(of["attention_norm"]),
            product(of["inner"]),
            product(of["output"]),
            pair(of["output_norm"]),
        )

    transformer = kernels.Transformer(
        n_heads=layers["n_heads"],
        epsilon=layers["epsilon"],
        mean_pooling=layers["pooling"] == "mean",
        first_position=layers["first_position"],
        pad_id=-1 if layers["pad_id"] is None else layers["pad_id"],
        words=table(layers["words"]),
        positions=table(layers["positions"]),
        token_type=array(layers["token_type"])[0],
        embedding_norm=pair(layers["embedding_norm"]),
        layers=[layer(of) for of in layers["layers"]],
        token_head=pair(layers["token_head"]),
        sparse_head=(array(layers["sparse_head"]["weights"]).reshape(-1), layers["sparse_head"]["bias"]),
        n_threads=n_threads,
    )
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # what was read to be copied; rows of tables come back as texts need them
    return transformer
