"""`make demo`: the whole way once, with real parts.

Builds the mini model (models/mini), exports it (models/mini-int8, and models/mini-fp32 to compare with), indexes the
docstrings of the Python standard library it runs on (build/demo-index), and asks it six questions in six languages.
What is there is used again.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from m3edge_export.export import export_precisions
from m3edge_export.mini import write_mini

from m3edge import Document, Encoder, Index
from m3edge.commands.searching import format_hit

ROOT = Path(__file__).parent
CHECKPOINT = ROOT / "models" / "mini"
MODELS = {"fp32": ROOT / "models" / "mini-fp32", "int8": ROOT / "models" / "mini-int8"}
INDEX = ROOT / "build" / "demo-index"

QUESTIONS = (
    ("English", "how do I compress a file"),
    ("German", "Wie viele Tage liegen zwischen zwei Daten?"),
    ("Chinese", "如何压缩文件"),
    ("Arabic", "كيف أرسل بريدا إلكترونيا"),
    ("Russian", "как запустить другую программу и прочитать её вывод"),
    ("Spanish", "elegir un elemento al azar de una lista"),
)

_NOT_THE_LIBRARY = {"__pycache__", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages"} | {
    "test", "tests", "turtledemo"
}  # fmt: skip
_SHORTEST_DOCSTRING = 60  # characters; shorter ones say little more than the name


def main() -> None:
    if not CHECKPOINT.exists():
        print(f"building the mini model in {CHECKPOINT.relative_to(ROOT)}", flush=True)
        write_mini(CHECKPOINT)
    missing = {precision: folder for precision, folder in MODELS.items() if not folder.exists()}
    if missing:
        print(f"exporting it to {', '.join(str(path.relative_to(ROOT)) for path in missing.values())}", flush=True)
        export_precisions(CHECKPOINT, missing)
    encoder = Encoder.load(MODELS["int8"])
    with open_index(encoder) as index:
        print(f"\n{len(index)} docstrings of Python {sys.version.split()[0]}, on {encoder.provider}\n")
        for language, question in QUESTIONS:
            start = time.perf_counter()
            hits = index.search(question, k=5)
            milliseconds = 1000 * (time.perf_counter() - start)
            print(f"{question}   ({language}, {milliseconds:.0f} ms)")
            for rank, hit in enumerate(hits, 1):
                print(format_hit(rank, hit))
            print()


def open_index(encoder: Encoder) -> Index:
    """The demo's index, built first when it is not there or was left unfinished."""
    index = Index.create(INDEX, encoder, exist_ok=True)
    if len(index) == 0:
        documents = list(docstrings(Path(sysconfig.get_paths()["stdlib"])))
        print(f"indexing {len(documents)} docstrings in {INDEX.relative_to(ROOT)}", flush=True)
        start = time.perf_counter()
        report = index.add(documents, progress=None)
        seconds = time.perf_counter() - start
        cut = f", {len(report.truncated)} of them cut at {encoder.info.max_length} tokens" if report.truncated else ""
        print(f"indexed {report.added} in {seconds:.0f} s{cut}")
    return index


def docstrings(library: Path) -> Iterator[Document]:
    """The docstring of every public module, class and function below a folder; read from the source, nothing is run."""
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        private = any(part.startswith("_") and part != "__init__.py" for part in place.parts)
        if private or _NOT_THE_LIBRARY & set(place.parts):
            continue
        module = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        yield from _docstrings_in(tree, module, {})


def _docstrings_in(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, seen: dict[str, int]
) -> Iterator[Document]:
    text = ast.get_docstring(node)
    if text and len(text) >= _SHORTEST_DOCSTRING:
        # A name defined twice (for two platforms, say) gives two documents.
        seen[name] = seen.get(name, 0) + 1
        yield Document(name if seen[name] == 1 else f"{name} ({seen[name]})", f"{name}\n{text}", {"name": name})
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            yield from _docstrings_in(child, f"{name}.{child.name}", seen)


if __name__ == "__main__":
    main()
