"""The C++ kernels (native/): what each computes, its twin in _kernels_numpy.py says."""

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
