"""Every measured number in the READMEs is what a committed file in benchmarks/results says."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme_tables  # noqa: E402

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
    assert "<!-- made: " in text
    assert readme_tables.render(text) == text, "run python benchmarks/readme_tables.py"


@pytest.mark.parametrize("path", readme_tables.FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_measured_number_stands_outside_a_made_part(path):
    text = readme_tables._PART.sub("", CODE.sub("", path.read_text()))
    for given in GIVEN:
        text = text.replace(given, "")
    lines = [line for line in text.splitlines() if MEASURED.search(line)]
    assert lines == [], "measure it in benchmarks/, keep the file, and let readme_tables.py write it"


def test_a_number_changed_by_hand_is_noticed():
    text = (ROOT / "README.md").read_text()
    altered = text.replace(readme_tables.quality_means(), "0.99")
    assert altered != text
    assert readme_tables.render(altered) == text
