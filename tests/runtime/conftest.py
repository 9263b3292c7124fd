"""What the runtime's tests share: every kernel, in numpy and in each instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from m3edge import _kernels_numpy

try:
    from m3edge import _native
except ImportError:
    _native = None  # type: ignore[assignment]  # installed without a compiler: the twins alone are tested


@pytest.fixture(scope="module", params=["numpy", *(_native.instruction_sets() if _native else ["native"])])
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A module with the kernels: the numpy twins, then the native ones in one instruction set after the other."""
    if request.param == "numpy":
        yield _kernels_numpy
        return
    if _native is None:
        pytest.skip("m3edge was installed without a compiler: there are no native kernels")
    before = _native.instruction_set()
    _native.set_instruction_set(request.param)
    yield _native
    _native.set_instruction_set(before)
