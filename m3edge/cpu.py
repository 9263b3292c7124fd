"""What this machine's CPU multiplies fast, and how many of its threads this process may use."""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def products_saturate(machine: str | None = None, cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this CPU adds pairs of unsigned-by-signed 8-bit products in 16 bits: x86 without VNNI, or x86 of which it
    cannot be told, does."""
    return _is_x86(machine) and not multiplies_bytes(machine, cpuinfo)


def multiplies_bytes(machine: str | None = None, cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this is an x86 that is known to have VNNI: 8-bit products at four times float32's rate.

    Only Linux has /proc/cpuinfo; elsewhere the native kernels know, where they are installed.
    """
    if not _is_x86(machine):
        return False
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        flags = _native_instruction_sets()
    return not {"avx512_vnni", "avx_vnni", "avx512-vnni", "avx-vnni"}.isdisjoint(flags)


def _native_instruction_sets() -> list[str]:
    """Those of the native kernels that this CPU has; none without a compiler at installation."""
    try:
        from m3edge import _native
    except ImportError:
        return []
    return list(_native.instruction_sets())


def _is_x86(machine: str | None) -> bool:
    return (machine or platform.machine()).lower() in ("x86_64", "amd64", "i386", "i686")


def available_cpus() -> int:
    """How many CPUs this process may use: its affinity mask and its container's quota, not the machine's count."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else (os.cpu_count() or 1)
    return max(1, min(cpus, _cgroup_cpus(Path("/sys/fs/cgroup/cpu.max"))))


def _cgroup_cpus(cpu_max: Path) -> int:
    """A container's CPU quota (cgroup v2), rounded up; a very large number where there is none."""
    try:
        quota, period = cpu_max.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max 100000"
        return 1 << 20
