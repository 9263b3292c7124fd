"""What this chip does at most, by which milliseconds of two machines can be compared: large products, and reads.

    python benchmarks/chip.py

One product of 1,024 rows with a 1024 x 4096 matrix in onnxruntime, in float32 and of unsigned by signed bytes, is what
onnxruntime gets out of a chip; a sum over memory that no cache holds is what it reads.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from m3edge.cpu import available_cpus
from m3edge.onnxruntime_engine import session_options

LARGE = (1024, 1024, 4096)  # rows, inputs, outputs
READ_BYTES = 512 << 20
REPEATS = 11


def main() -> None:
    print(json.dumps(rates(available_cpus()), indent=1))


def rates(threads: int) -> dict[str, float]:
    """Billions of operations a second (an addition and a multiplication are two) and of bytes read; medians."""
    memory = np.ones(READ_BYTES // 8, np.int64)
    shares = np.array_split(memory, threads)
    int8, fp32 = (Product(kind, threads) for kind in ("int8", "fp32"))
    with ThreadPoolExecutor(threads) as pool:
        work: dict[str, tuple[float, Callable[[], float]]] = {
            "int8_gops": (int8.operations, int8.seconds),
            "fp32_gops": (fp32.operations, fp32.seconds),
            "read_gb_s": (READ_BYTES, lambda: seconds(lambda: list(pool.map(np.sum, shares)))),
        }
        found: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(REPEATS):
            for name, (amount, timed) in work.items():
                found[name].append(amount / timed() / 1e9)
    return {name: round(statistics.median(each), 1) for name, each in found.items()}


class Product:
    """One product of rows with a constant matrix on onnxruntime's CPU: "int8" of unsigned by signed bytes, or "fp32".

    operations: additions and multiplications
    """

    def __init__(self, kind: str, threads: int, shape: tuple[int, int, int] = LARGE) -> None:
        rows, inputs, outputs = shape
        self.operations = 2 * rows * inputs * outputs
        rng = np.random.default_rng(0)
        if kind == "int8":
            data = rng.integers(0, 256, (rows, inputs)).astype(np.uint8)
            constants = {"w": rng.integers(-127, 128, (inputs, outputs)).astype(np.int8), "zero": np.uint8(128)}
            operator, result = "MatMulInteger", TensorProto.INT32
        else:
            data = rng.standard_normal((rows, inputs)).astype(np.float32)
            constants = {"w": rng.standard_normal((inputs, outputs)).astype(np.float32)}
            operator, result = "MatMul", TensorProto.FLOAT
        x = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(data.dtype), data.shape)
        y = helper.make_tensor_value_info("y", result, [rows, outputs])
        initializers = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
        node = helper.make_node(operator, ["x", *constants], ["y"])
        graph = helper.make_graph([node], "product", [x], [y], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
        )
        self._data = {"x": data}

    def seconds(self) -> float:
        """Of one product."""
        return seconds(lambda: self._session.run(None, self._data))


def seconds(work: Callable[[], object]) -> float:
    """That a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
