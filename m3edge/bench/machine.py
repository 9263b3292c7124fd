"""What a measurement ran on: every result file says it, so that nobody compares two machines by accident."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from m3edge.cpu import available_cpus
from m3edge.kernels import DESCRIPTION as KERNELS

_CHECKOUT = Path(__file__).parent.parent.parent
_PACKAGES = ("m3edge", "onnxruntime", "openvino", "hnswlib", "numpy", "tokenizers")


def describe_machine() -> dict[str, Any]:
    """CPU, threads, kernels, installed versions, commit and date, as JSON; no commit where m3edge is no checkout."""
    return {
        "cpu": cpu_name(),
        "threads": available_cpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "kernels": KERNELS,
        "packages": {name: number for name in _PACKAGES if (number := _version(name))},
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def cpu_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    if not (_CHECKOUT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        result = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return None
    return result.stdout.strip() or None
