"""Weights of ONNX graphs on disk: read one at a time from one file, written one at a time to another.

A model of several gigabytes is never in memory as a whole.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, set_external_data, uses_external_data

from m3edge.model_folder import WEIGHTS

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
_EXTERNAL_FROM = 1024  # bytes: shorter lists of integers stay in the graph, where shape inference can see them


class WeightReader:
    """The initializers of a graph by name, those in its external data mapped and not read."""

    def __init__(self, graph: GraphProto, folder: Path) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> np.ndarray:
        """One weight, read-only where it is mapped."""
        tensor = self._tensors[name]
        if not uses_external_data(tensor):
            return numpy_helper.to_array(tensor)
        info = ExternalDataInfo(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(self._folder / info.location, dtype, "r", offset=info.offset or 0, shape=tuple(tensor.dims))


class WeightWriter:
    """Writes a graph's weights to one file beside it, each at a multiple of 64 bytes."""

    def __init__(self, folder: Path, name: str = WEIGHTS) -> None:
        self._name = name
        self._file: BinaryIO = (folder / name).open("wb")

    def __enter__(self) -> WeightWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def tensor(self, name: str, values: np.ndarray) -> TensorProto:
        """An initializer with these values: in the file, or in itself when it is small."""
        if values.size <= 1 or (values.dtype == np.int64 and values.nbytes < _EXTERNAL_FROM):
            return numpy_helper.from_array(np.asarray(values, order="C"), name)  # a scalar stays one
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        # set_external_data wants to see data in the tensor; it is cleared at once
        tensor.raw_data = b"\0"
        set_external_data(tensor, location=self._name, offset=self._file.tell(), length=values.nbytes)
        tensor.ClearField("raw_data")
        self._file.write(np.ascontiguousarray(values).data)
        return tensor
