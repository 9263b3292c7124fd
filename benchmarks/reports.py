"""A script's result file that grows: what was measured is kept, and an interrupted run goes on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from machine import describe_machine

from m3edge.files import write_atomically


def resumed(out: Path, settings: dict[str, Any], **empty: Any) -> dict[str, Any]:
    """The report in a file, where it was made under the same settings; else a new one: settings, machine, `empty`."""
    if out.exists():
        report: dict[str, Any] = json.loads(out.read_bytes())
        if {key: report.get(key) for key in settings} == settings:
            return report
    return {**settings, "machine": describe_machine(), **empty}


def save(out: Path, report: dict[str, Any]) -> None:
    """Write the report in one step, so that a kill leaves the one before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
