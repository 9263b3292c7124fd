"""A process that writes to an index until it is killed, and what it writes: small documents with made-up embeddings.

Run as a script it takes lines "FOLDER LOG SEED" and forks, for each, a child that works on that index: so a test does
not pay a new interpreter's imports for each kill. The child appends the number of an operation to LOG before it begins
it and once it is done; which operations those are, SEED and the index's content decide, so the test knows them, too.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np

from m3edge import Document, Embeddings, Index
from m3edge.embeddings import SparseRows, TokenRows, offsets_of
from m3edge.model_folder import PRESETS

DIM = 16
VOCABULARY = 50
IDS = [f"d{i}" for i in range(40)]

# As much of an Encoder as making an index takes.
MODEL = SimpleNamespace(
    info=SimpleNamespace(
        name="made up", fingerprint="0" * 64, precision="fp32", dense_dim=DIM, token_dim=DIM, presets=PRESETS
    ),
    session=SimpleNamespace(n_threads=2),
)


def documents_of(versions: dict[str, int]) -> list[Document]:
    return [Document(id_, f"{id_} in version {version}", {"version": version}) for id_, version in versions.items()]


def embeddings_of(versions: dict[str, int]) -> Embeddings:
    """Of each id in each version always the same ones."""
    parts = [_embedding(f"{id_}:{version}") for id_, version in versions.items()]
    dense, ids, weights, tokens = zip(*parts, strict=True) if parts else ((), (), (), ())
    flat_ids = np.concatenate([np.empty(0, np.int64), *ids])
    return Embeddings(
        dense=np.array(dense, np.float32).reshape(-1, DIM),
        sparse=SparseRows(
            flat_ids,
            np.concatenate([np.empty(0, np.float32), *weights]),
            np.ones(len(flat_ids), np.int32),
            offsets_of([len(row) for row in ids]),
        ),
        tokens=TokenRows(
            np.concatenate([np.empty((0, DIM), np.float32), *tokens]), offsets_of([len(row) for row in tokens])
        ),
        truncated=np.zeros(len(parts), bool),
    )


def content_of(index: Index) -> dict[str, int]:
    """The version of each document that is there."""
    return {id_: document.metadata["version"] for id_ in IDS if (document := index.get(id_)) is not None}


def operations(seed: int, content: dict[str, int]) -> Iterator[tuple[list[tuple], dict[str, int]]]:
    """One after another: the steps of an operation, durable together, and the content once they are."""
    dice = random.Random(seed)
    while True:
        steps = []
        content = dict(content)
        for _ in range(dice.choice([1, 1, 1, 2, 4])):
            absent = [id_ for id_ in IDS if id_ not in content]
            kind = dice.choice(["add", "upsert", "delete", "compact"])
            if kind == "add" and absent:
                step = {id_: dice.randrange(1000) for id_ in dice.sample(absent, min(len(absent), 6))}
                content.update(step)
            elif kind == "delete" and content:
                step = dice.sample(sorted(content), min(len(content), 3))
                content = {id_: version for id_, version in content.items() if id_ not in step}
            elif kind == "compact" and not steps:
                steps = [("compact", None)]
                break
            else:
                kind, step = "upsert", {id_: dice.randrange(1000) for id_ in dice.sample(IDS, 4)}
                content.update(step)
            steps.append((kind, step))
        yield steps, content


def perform(index: Index, steps: Sequence[tuple]) -> None:
    if steps[0][0] == "compact":
        index.compact()
        return
    with index.transaction():
        for kind, step in steps:
            if kind == "delete":
                index.delete(step)
            else:
                getattr(index, kind)(documents_of(step), embeddings=embeddings_of(step))


def work(folder: str, log: str, seed: int) -> None:
    with open(log, "w") as file:
        index = Index.open(folder)
        for number, (steps, _) in enumerate(operations(seed, content_of(index))):
            print(f"begun {number}", file=file, flush=True)
            perform(index, steps)
            print(f"done {number}", file=file, flush=True)
            if number % 7 == 6:
                index.close()
                index = Index.open(folder)


def _embedding(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    vectors = rng.standard_normal((1 + rng.integers(1, 6), DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.sort(rng.choice(VOCABULARY, 5, replace=False)).astype(np.int64)
    return vectors[0], ids, rng.random(5, np.float32), vectors[1:]


if __name__ == "__main__":
    Index  # noqa: B018  # all imports are done before the first fork
    import filelock  # noqa: F401
    import hnswlib  # noqa: F401

    for line in sys.stdin:
        folder, log, seed = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            try:
                work(folder, log, int(seed))
            finally:
                os._exit(1)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
