"""Every measured number in the READMEs is what a committed file in benchmarks/results says."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme_tables  # noqa: E402
from made.results import METHODS  # noqa: E402

CODE = re.compile(r"```.*?```", re.DOTALL)
# What only a measurement can say: a time, a rate, a size in memory or on disk, a ratio, a score.
MEASURED = re.compile(
    r"\d[\d,.]*\s?(?:ms\b|µs\b|MB\b|GB\b|%|times as|documents a second|tokens a second|documents/s|tokens/s)"
    r"|(?<![\d.,])0?\.\d{2,}"
)
# Numbers of that look which nobody measured: definitions, defaults and what the papers say.
GIVEN = ("0.15 | 0.5 | 0.35", "more\nthan 95 %", ".15, .5, .35", "to 0.0001", "95 % of the right passage")


@pytest.mark.parametrize("path", readme_tables.FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_made_part_is_what_its_file_says(path):
    text = path.read_text()
    assert readme_tables.render(text) == text, "run python benchmarks/readme_tables.py"


def test_every_part_that_can_be_made_is_in_one_of_the_files():
    used = {name for path in readme_tables.FILES for _, name, _, _ in readme_tables.PART.findall(path.read_text())}
    assert used == set(readme_tables.MADE)
    assert sum(map(len, readme_tables.TOPICS)) == len(readme_tables.MADE)  # no name twice


@pytest.mark.parametrize("path", readme_tables.FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_measured_number_stands_outside_a_made_part(path):
    text = readme_tables.PART.sub("", CODE.sub("", path.read_text()))
    for given in GIVEN:
        text = text.replace(given, "")
    lines = [line for line in text.splitlines() if MEASURED.search(line)]
    assert lines == [], "measure it in benchmarks/, keep the file, and let readme_tables.py write it"


def test_each_precision_is_compared_with_fp32_over_the_sets_it_was_measured_on(tmp_path, monkeypatch):
    monkeypatch.setattr("made.results.RESULTS", tmp_path)
    (tmp_path / "quality").mkdir()
    scores = {"fp32": {"a": 0.80, "b": 0.60, "c": 0.10}, "int8": {"a": 0.79, "b": 0.62}, "int4": {"b": 0.50}}
    for precision, sets in scores.items():
        rows = [
            {"dataset": name, "modes": {method: {"nDCG@10": value} for method in METHODS}}
            for name, value in sets.items()
        ]
        (tmp_path / "quality" / f"{precision}.json").write_text(json.dumps({"rows": rows}))
    made = readme_tables.MADE["quality-loss"]()
    assert "| fp32, nDCG@10 | 3 | 0.5000 |" in made
    assert "| int8, points lost | 2 | -0.50 |" in made
    assert "| int4, points lost | 1 | 10.00 |" in made


def test_a_number_changed_by_hand_is_noticed():
    text = (ROOT / "README.md").read_text()
    altered = text.replace(readme_tables.MADE["quality-means"](), "0.99")
    assert altered != text
    assert readme_tables.render(altered) == text
