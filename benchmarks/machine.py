"""What the scripts here share: where the checkout is, and the machine's description as `m3edge bench` gives it."""

from __future__ import annotations

from pathlib import Path

from m3edge.bench.machine import describe_machine

__all__ = ["RESULTS", "ROOT", "describe_machine"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
