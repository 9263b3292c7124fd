"""Sparse top-100 over the same postings, each query alone on one thread: time, and how many of the 100 best are found.

scipy, numpy and bm25s get the float32 weights; PISA 8-bit ones, as its authors do; Seismic is approximate by design.
tantivy knows no weights of its own: it ranks the same tokens by BM25. What was built is kept for the next round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from timing import run_contestant

sys.path.insert(0, str(Path(__file__).parent.parent))

from flat_postings import FlatPostings, FlatQuery, K, best, query_times

PISA_LEVELS = 255


def measure(
    flat: FlatPostings, search: Callable[[FlatQuery], np.ndarray], version: str, *, judged: bool = True, **more: Any
) -> dict[str, Any]:
    """search: a query to the numbers of the documents found; judged: whether its scores are those of the weights"""
    times = query_times(search, flat.queries)
    recall = {"recall": flat.recall(lambda i: search(flat.queries[i]))} if judged else {}
    return {"version": version, "query_ms": times["median_ms"], "p99_ms": times["p99_ms"], **recall, **more}


def m3edge(data: Path) -> dict[str, Any]:
    import postings  # benchmarks/postings.py: its folder comes first

    import m3edge

    folder = data / "postings"
    index, queries = postings.load_index(folder), postings.load_queries(folder)
    flat = FlatPostings(folder)
    flat.queries = queries  # which have counts as well
    size = index.size_bytes / index.n_postings
    return measure(flat, postings.native_search(index), m3edge.__version__, bytes_a_posting=size)


def by_numpy(data: Path) -> dict[str, Any]:
    flat = FlatPostings(data / "postings")
    return measure(flat, flat.search, np.__version__, bytes_a_posting=flat.size_bytes / len(flat.documents))


def by_scipy(data: Path) -> dict[str, Any]:
    """A sparse matrix by columns: a row of the query times all of it would touch every column."""
    from scipy.sparse import csc_array

    flat = FlatPostings(data / "postings")
    matrix = csc_array((flat.weights, flat.documents, flat.starts), shape=(flat.n_documents, flat.n_tokens))
    return measure(flat, lambda query: best(matrix[:, query.ids] @ query.weights), version("scipy"))


def bm25s(data: Path) -> dict[str, Any]:
    """Its retrieval over our weights in its own arrays. It counts a query's tokens and has no weights for them, so what
    it finds is not judged."""
    import bm25s as package

    flat = FlatPostings(data / "postings")
    retriever = package.BM25(backend="numpy")
    retriever.scores = {
        "data": flat.weights, "indices": flat.documents, "indptr": flat.starts, "num_docs": flat.n_documents,
    }  # fmt: skip
    retriever.nonoccurrence_array = None
    retriever.unique_token_ids_set = set(range(flat.n_tokens))

    def search(query: FlatQuery) -> np.ndarray:
        scores = retriever.get_scores(query.ids.tolist())
        found: np.ndarray = package.selection.topk(scores, K, backend="numpy")[1]
        return found

    return measure(flat, search, package.__version__, judged=False)


def tantivy(data: Path) -> dict[str, Any]:
    """Block-max WAND."""
    import tantivy as package

    flat = FlatPostings(data / "postings")
    builder = package.SchemaBuilder()
    builder.add_text_field("tokens", stored=False, tokenizer_name="whitespace", index_option="freq")
    folder = data / "tantivy"
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    index = package.Index(builder.build(), path=str(folder))
    if new:
        writer = index.writer(heap_size=300_000_000, num_threads=1)
        starts, tokens, _ = rows_of(flat)
        for i in range(flat.n_documents):
            words = " ".join(map(str, tokens[starts[i] : starts[i + 1]].tolist()))
            writer.add_document(package.Document(tokens=words))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
    searcher = index.searcher()

    def search(query: FlatQuery) -> np.ndarray:
        words = index.parse_query(" ".join(map(str, query.ids.tolist())), ["tokens"])
        return np.array([address.doc for _, address in searcher.search(words, K, count=False).hits])

    return measure(flat, search, version("tantivy"), judged=False)


def pisa(algorithm: str) -> Callable[[Path], dict[str, Any]]:
    """pyterrier-pisa, called below its data frames, which take longer than the search."""

    def contestant(data: Path) -> dict[str, Any]:
        import pyterrier_pisa
        from pyterrier_pisa import _pisathon

        flat = FlatPostings(data / "postings")
        folder = data / "pisa"
        if not (folder / "pt_meta.json").exists():
            write_pisa(flat, folder)
        index = pyterrier_pisa.PisaIndex(str(folder), stops="none")
        retriever = index.quantized(num_results=K, query_algorithm=algorithm)
        rows, ranks = np.empty(K, np.int32), np.empty(K, np.int32)
        names, scores = np.empty(K, object), np.empty(K, np.float32)

        def search(query: FlatQuery) -> np.ndarray:
            weights = np.maximum(1, np.rint(query.weights * PISA_LEVELS)).tolist()
            tokens = dict(zip(map("{:06d}".format, query.ids.tolist()), weights, strict=True))
            n = _pisathon.retrieve(
                retriever._ctxt, algorithm, [(0, tokens)], k=K, threads=1, query_weighted=1, pretokenised=True,
                result_qidxs=rows, result_docnos=names, result_ranks=ranks, result_scores=scores,
            )  # fmt: skip
            return names[:n].astype(np.int64)

        size = sum(file.stat().st_size for file in folder.glob("quantized.*")) / len(flat.documents)
        return measure(flat, search, version("pyterrier-pisa"), bytes_a_posting=size)

    return contestant


def write_pisa(flat: FlatPostings, folder: Path) -> None:
    """The files that its own indexer of tokens writes, without a Python object for each posting."""
    from pyterrier_pisa import _pisathon

    folder.mkdir(exist_ok=True)
    lengths = np.diff(flat.starts)
    used = np.flatnonzero(lengths)
    weights = np.maximum(1, np.rint(flat.weights * PISA_LEVELS)).astype(np.uint32)
    heads = flat.starts[used] + np.arange(len(used))  # a list's length stands before it
    for name, values, start in (("docs", flat.documents, [1, flat.n_documents]), ("freqs", weights, [])):
        lists = np.empty(len(values) + len(used), np.uint32)
        is_head = np.zeros(len(lists), bool)
        is_head[heads] = True
        lists[heads], lists[~is_head] = lengths[used], values
        with (folder / f"inv.{name}").open("wb") as file:
            file.write(np.array(start, np.uint32).tobytes())
            lists.tofile(file)
    sizes = np.bincount(flat.documents, weights=weights, minlength=flat.n_documents)
    np.concatenate([[flat.n_documents], sizes]).astype(np.uint32).tofile(folder / "inv.sizes")
    (folder / "fwd.documents").write_text("".join(f"{i}\n" for i in range(flat.n_documents)))
    (folder / "fwd.terms").write_text("".join(f"{token:06d}\n" for token in used.tolist()))
    for name, lexicon in (("documents", "doclex"), ("terms", "termlex")):
        _pisathon.build_binlex(str(folder / f"fwd.{name}"), str(folder / f"fwd.{lexicon}"))
    meta = {"type": "sparse_index", "format": "pisa", "package_hint": "pyterrier-pisa", "stemmer": "none"}
    (folder / "pt_meta.json").write_text(json.dumps(meta))


def seismic(n_postings: int, query_cut: int, heap_factor: float) -> Callable[[Path], dict[str, Any]]:
    """heap_factor: a cluster is skipped whose summary scores less than so many times the K-th best so far.

    Its index gets only the tokens that the queries use, which changes no score: with a vocabulary of 250,002, building
    it for as few as 20,000 documents did not end within a quarter of an hour.
    """

    def contestant(data: Path) -> dict[str, Any]:
        import seismic as package

        flat = FlatPostings(data / "postings")
        used = np.unique(np.concatenate([query.ids for query in flat.queries]))
        file = data / f"seismic-{n_postings}"
        if not Path(f"{file}.index.seismic").exists():
            starts, tokens, weights = rows_of(flat, used)
            dataset = package.SeismicDataset()
            names = [str(i) for i in range(flat.n_documents)]
            dataset.add_documents_by_id(names, tokens.astype(np.int64), weights, starts)
            package.SeismicIndex.build_from_dataset(dataset, n_postings=n_postings, num_threads=2).save(str(file))
        index = package.SeismicIndex.load(f"{file}.index.seismic")
        kind = package.get_seismic_string()
        queries = {id(query): np.searchsorted(used, query.ids).astype(kind) for query in flat.queries}

        def search(query: FlatQuery) -> np.ndarray:
            found = index.search("0", queries[id(query)], query.weights, K, query_cut, heap_factor)
            return np.array([int(name) for _, _, name in found], np.int64)

        return measure(flat, search, version("pyseismic-lsr"))

    return contestant


def rows_of(flat: FlatPostings, used: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By document: starts int64 [n_documents + 1], tokens int32 [n], ascending within a document, weights float32 [n].

    used: int64, ascending, tokens to keep, which become 0, 1, 2 …; None: all, as they are
    """
    lengths = np.diff(flat.starts)
    tokens = np.repeat(np.arange(flat.n_tokens, dtype=np.int32), lengths)
    documents, weights = flat.documents, flat.weights
    if used is not None:
        kept = np.isin(np.arange(flat.n_tokens), used).repeat(lengths)
        tokens = np.searchsorted(used, tokens[kept]).astype(np.int32)
        documents, weights = documents[kept], weights[kept]
    order = np.argsort(documents, kind="stable")
    starts = np.zeros(flat.n_documents + 1, np.int64)
    np.cumsum(np.bincount(documents, minlength=flat.n_documents), out=starts[1:])
    return starts, tokens[order], weights[order]


if __name__ == "__main__":
    run_contestant(
        {
            "m3edge": m3edge,
            "PISA, MaxScore": pisa("maxscore"),
            "PISA, block-max MaxScore": pisa("block_max_maxscore"),
            "PISA, block-max WAND": pisa("block_max_wand"),
            "Seismic, its defaults": seismic(3500, 10, 0.7),
            "Seismic, careful": seismic(20000, 16, 0.3),
            "bm25s": bm25s,
            "tantivy, BM25": tantivy,
            "scipy": by_scipy,
            "numpy": by_numpy,
        }
    )
