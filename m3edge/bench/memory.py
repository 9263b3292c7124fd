"""Memory of this process, from the operating system."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_mb() -> float:
    """The most memory this process had resident so far, in millions of bytes.

    Raises ImportError on Windows without psutil.
    """
    if sys.platform == "linux":
        # Not getrusage: its maximum starts with that of the process this one was started from.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    if sys.platform == "win32":
        try:
            import psutil
        except ImportError as error:
            raise ImportError("memory on Windows needs psutil: pip install 'm3edge[bench]'") from error
        return round(psutil.Process().memory_info().peak_wset / 1e6, 1)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
