"""Reading results/, for the modules beside this one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from machine import RESULTS

METHODS = ("dense", "sparse", "tokens", "dense+sparse", "all")  # the columns of a table of quality
# What a precision on an engine is called, by its file in results/quality.
PRECISIONS = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "int8-native": "int8, native",
    "int8-openvino": "int8, static, on OpenVINO",
    "int4": "int4",
}

Modes = dict[str, dict[str, float]]  # method -> metric -> value


def result(name: str) -> Any:
    """A file of results/ as JSON. Raises FileNotFoundError where it was not measured yet."""
    return json.loads((RESULTS / f"{name}.json").read_bytes())


def is_there(name: str) -> bool:
    return (RESULTS / f"{name}.json").exists()


def modes_by_set(name: str) -> dict[str, Modes]:
    """What quality.py found, by data set."""
    return {row["dataset"]: row["modes"] for row in result(name)["rows"]}


def common_sets(*reports: dict[str, Modes]) -> list[str]:
    """The data sets that all have, in the first one's order."""
    return [name for name in reports[0] if all(name in report for report in reports)]


def mean_ndcg(report: dict[str, Modes], sets: list[str], method: str) -> float:
    return float(np.mean([report[name][method]["nDCG@10"] for name in sets]))
