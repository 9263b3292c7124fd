"""What the contestants share: clocks, and how they are called. Needs numpy alone: it runs in every environment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def times_ms(calls: Sequence[Callable[[], Any]], warm_up: int = 3) -> np.ndarray:
    """Milliseconds of each call, after a few that do not count."""
    for call in calls[:warm_up]:
        call()
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return np.array(times)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call took, and what it returned."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def run_contestant(contestants: dict[str, Callable[[Path], dict[str, Any]]]) -> None:
    """`python TASK.py CONTESTANT DATA_FOLDER RESULT_FILE`: run one and write what it returns as JSON."""
    name, data, result = sys.argv[1:]
    Path(result).write_text(json.dumps(contestants[name](Path(data))))
