"""The numbers in README.md, benchmarks/README.md and docs/, made from the files in results/.

    python benchmarks/readme_tables.py           # writes them
    python benchmarks/readme_tables.py --check   # says whether they are what the files say; tests do the same

A made part stands between `<!-- made: NAME -->` and `<!-- end -->`; the modules in made/ have the names. Where the file
is not there it says so.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import made.bench
import made.index
import made.peers
import made.precisions
import made.quality
import made.training
from machine import RESULTS, ROOT

FILES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TOPICS = (
    made.bench.PARTS,
    made.peers.PARTS,
    made.quality.PARTS,
    made.precisions.PARTS,
    made.index.PARTS,
    made.training.PARTS,
)
MADE: dict[str, Callable[[], str]] = {name: make for parts in TOPICS for name, make in parts.items()}
PART = re.compile(r"(<!-- made: ([\w-]+) -->)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 for what is not up to date")
    options = parser.parse_args()
    stale = [path for path in FILES if render(path.read_text()) != path.read_text()]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'not up to date' if options.check else 'written'}")
        if not options.check:
            path.write_text(render(path.read_text()))
    return 1 if options.check and stale else 0


def render(text: str) -> str:
    """The text with every made part made anew; parts inside a line stay inside it. Raises KeyError for a name that
    nothing makes."""

    def make(match: re.Match[str]) -> str:
        start, name, old, end = match.groups()
        try:
            content = MADE[name]()
        except FileNotFoundError as error:
            content = f"(not measured yet: results/{Path(error.filename).relative_to(RESULTS).as_posix()})"
        return f"{start}\n{content}\n{end}" if old.startswith("\n") else f"{start}{content}{end}"

    return PART.sub(make, text)


if __name__ == "__main__":
    sys.exit(main())
