"""What each part of the mini model's training is worth: its heads trained with one part left out or added.

    python benchmarks/ablation.py models/mini ../shared/data/train ../shared/data/beir --queries 200

The training is that of export/m3edge_export/data/heads.md. The encoder is frozen, so every text goes through it once;
states and trained heads are kept in build/ablation, and an interrupted run goes on where it was. Measured are the
evaluation sets and, to choose by, passages held out of the training files: their queries against them and the passages
of the same file that were trained on. Writes benchmarks/results/ablation.json after each set and prints the means as
Markdown. On a busy machine OMP_NUM_THREADS=1 is several times as fast as threads that wait for each other.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ablation_report import HELD_OUT, METHODS, REFERENCE, tables
from m3edge_export.checkpoint import TOKENIZER, Checkpoint, load_checkpoint, model_info
from m3edge_export.deltas import apply_deltas, read_deltas, write_deltas
from m3edge_export.training.batching import IndexedPair
from m3edge_export.training.data import Pair, read_pairs, sample_passages
from m3edge_export.training.encoder import states_encoder
from m3edge_export.training.heads import prepare_heads
from m3edge_export.training.losses import Objective
from m3edge_export.training.negatives import mine_negatives
from m3edge_export.training.passes import FrozenPass
from m3edge_export.training.states import States, encode_states
from m3edge_export.training.trainer import Trainer, Training, TrainingData
from machine import RESULTS, ROOT
from reports import resumed, save

from m3edge.encoder import Encoder
from m3edge.evaluation import BeirDataset, evaluate, read_beir
from m3edge.tokenization import TokenizedText, Tokenizer

SETS = (
    "arcd-ar", "drcd-zh-hant", "iapp-th", "medquad-en", "piaf-fr", "qmsum-en", "reactdocs-en", "reactdocs-fr",
    "reactdocs-ko", "reactdocs-zh", "xquad-ar", "xquad-en", "xquad-hi", "xquad-th", "xquad-zh",
)  # fmt: skip
LEFT_OUT = "qmsum"  # of the training files: its passages are whole meetings
MAX_LENGTH = 256  # tokens of a text in training
CHUNK_TEXTS = 1000  # whose states are one file

# Every training but one thing is that of the heads that ship.
TRAININGS = {
    REFERENCE: Training(),
    "no self-distillation": Training(objective=Objective(distillation=False)),
    "mined negatives": Training(negatives=1, refresh=200),
}
SHIPPED, START = "as shipped", "untrained"
VARIANTS = (START, SHIPPED, *TRAININGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the mini model's checkpoint")
    parser.add_argument("train", type=Path, help="folder of training files")
    parser.add_argument("data", type=Path, help="folder of BEIR folders")
    parser.add_argument("--sets", nargs="*", default=list(SETS), help="BEIR folders to measure on")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--passages", type=int, default=1000, help="of each training file; default: %(default)s")
    parser.add_argument("--held-out", type=int, default=150, help="passages of each file; default: %(default)s")
    parser.add_argument("--queries", type=int, default=200, help="of each set; default: %(default)s")
    parser.add_argument("--documents", type=int, help="of each BEIR folder; default: all")
    parser.add_argument("--steps", type=int, help="of each training; default: one pass over the data")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablation", help="default: build/ablation")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation.json")
    options = parser.parse_args()

    bench = Bench(load_checkpoint(options.source, attention="sdpa"), options.work)
    training, held_out = read_training(options.train, options.passages, options.held_out, options.queries)
    data = bench.training_data(training)
    settings = {
        "fingerprint": bench.info.fingerprint,
        "passages": options.passages,
        "held_out": options.held_out,
        "queries": options.queries,
        "documents": options.documents,
        "steps": options.steps,
    }
    report = resumed(options.out, settings, trainings={}, rows=[])
    for name in options.variants:
        set_heads(bench, name, data, options.steps, report)
        for dataset in held_out:
            measure(bench, name, dataset, MAX_LENGTH, report, options.out)
        for folder in options.sets:
            dataset = read_beir(options.data / folder, n_queries=options.queries, n_documents=options.documents)
            measure(bench, name, dataset, bench.info.max_length, report, options.out)
    print(tables(report))


class Bench:
    """The frozen encoder, with its states of all texts that went through it."""

    def __init__(self, checkpoint: Checkpoint, work: Path) -> None:
        self.model = checkpoint.model
        self.info = model_info(checkpoint)
        self.dropped = checkpoint.special_ids().dropped
        self.work = work
        self._known: list[tuple[Sequence[TokenizedText], States]] = []
        self._tokenizer = Tokenizer(checkpoint.folder / TOKENIZER)
        self.shipped = {name: tensor.clone() for name, tensor in self.model.state_dict().items() if "_head." in name}

    def training_data(self, pairs: Sequence[Pair]) -> Trained:
        queries = list(dict.fromkeys(pair.query for pair in pairs))
        passages = list(dict.fromkeys(pair.positive for pair in pairs))
        place = {text: i for i, text in enumerate(queries)}, {text: i for i, text in enumerate(passages)}
        indexed = [IndexedPair(place[0][pair.query], place[1][pair.positive], pair.source) for pair in pairs]
        sides = (
            self.tokenize(queries, self.info.query_prefix, MAX_LENGTH),
            self.tokenize(passages, self.info.passage_prefix, MAX_LENGTH),
        )
        states = self.states(sides[0], "training queries"), self.states(sides[1], "training passages")
        return Trained(queries, passages, TrainingData(*sides, indexed), *states)

    def tokenize(self, texts: Sequence[str], prefix: str, max_length: int) -> list[TokenizedText]:
        return self._tokenizer.tokenize(texts, prefix=prefix, max_length=max_length)

    def states(self, texts: Sequence[TokenizedText], what: str) -> States:
        """From the files of earlier runs, as far as they are there."""
        parts = []
        for start in range(0, len(texts), CHUNK_TEXTS):
            chunk = texts[start : start + CHUNK_TEXTS]
            key = hashlib.sha256(b"/".join([self.info.fingerprint.encode(), *(text.ids.tobytes() for text in chunk)]))
            path = self.work / "states" / f"{key.hexdigest()[:24]}.pt"
            if not path.exists():
                began = time.perf_counter()
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(tuple(encode_states(self.model, chunk)), path.with_suffix(".new"))
                path.with_suffix(".new").rename(path)
                seconds = time.perf_counter() - began
                print(f"{what}: {start + len(chunk)} of {len(texts)} ({seconds:.0f} s)", file=sys.stderr, flush=True)
            parts.append(States(*torch.load(path, weights_only=True)))
        states = _joined(parts)
        self._known.append((texts, states))
        return states

    def encode_new(self, texts: Sequence[TokenizedText], what: str) -> None:
        """Make sure that `encoder` knows these texts."""
        seen = {text.ids.tobytes() for known, _ in self._known for text in known}
        if new := [text for text in texts if text.ids.tobytes() not in seen]:
            self.states(new, what)

    def encoder(self, max_length: int) -> Encoder:
        """Of all texts that went through `states`, as they are when cut at so many tokens."""
        return states_encoder(self.model, replace(self.info, max_length=max_length), self._tokenizer, self._known)


class Trained(NamedTuple):
    """The training texts, and their states."""

    queries: list[str]
    passages: list[str]
    data: TrainingData
    query_states: States
    passage_states: States


def read_training(
    folder: Path, n_passages: int, n_held_out: int, n_queries: int
) -> tuple[list[Pair], list[BeirDataset]]:
    """The pairs to train on, and of each file with more passages a data set of passages that are not among them."""
    training, held_out = [], []
    for path in sorted(folder.glob("*.jsonl.gz")):
        if path.name.startswith(LEFT_OUT):
            continue
        pairs, _ = read_pairs(path)
        chosen = sample_passages(pairs, n_passages, seed=0)
        training += chosen
        trained_on, asked = {pair.positive for pair in chosen}, {pair.query for pair in chosen}
        others = [pair for pair in pairs if pair.positive not in trained_on and pair.query not in asked]
        sample = sample_passages(others, n_held_out, seed=1)
        if sample:
            held_out.append(_dataset(path.name.split(".")[0], sample, sorted(trained_on), n_queries))
    return training, held_out


def _dataset(source: str, pairs: Sequence[Pair], more_passages: Sequence[str], n_queries: int) -> BeirDataset:
    corpus = {text: str(i) for i, text in enumerate([*dict.fromkeys(pair.positive for pair in pairs), *more_passages])}
    qrels: dict[str, dict[str, int]] = {}
    for pair in pairs:
        qrels.setdefault(pair.query, {})[corpus[pair.positive]] = 1
    queries = random.Random(0).sample(sorted(qrels), min(n_queries, len(qrels)))
    return BeirDataset(
        f"{HELD_OUT}{source}",
        {id_: text for text, id_ in corpus.items()},
        {str(i): query for i, query in enumerate(queries)},
        {str(i): qrels[query] for i, query in enumerate(queries)},
    )


def set_heads(bench: Bench, name: str, trained: Trained, steps: int | None, report: dict[str, Any]) -> None:
    """Give the model this variant's heads, trained now or by an earlier run."""
    model = bench.model
    model.load_state_dict(bench.shipped, strict=False)
    if name == SHIPPED:
        return
    path = bench.work / f"heads-{name.replace(' ', '-')}-{len(trained.passages)}-{steps or 'epoch'}.safetensors"
    if path.exists():
        apply_deltas(model, read_deltas(path))
        return
    torch.manual_seed(0)
    some = torch.arange(0, len(trained.passages), max(1, len(trained.passages) // 500))
    prepare_heads(model, _rows(trained.passage_states, some))
    if name != START:
        _train(bench, name, trained, replace(TRAININGS[name], steps=steps), report)
    write_deltas(path, model, {})
    apply_deltas(model, read_deltas(path))  # in half precision, as they would ship


def _train(bench: Bench, name: str, trained: Trained, config: Training, report: dict[str, Any]) -> None:
    for parameter in bench.model.encoder.parameters():
        parameter.requires_grad_(False)
    states = trained.query_states, trained.passage_states
    trainer = Trainer(bench.model, FrozenPass(*states), trained.data, bench.dropped, config)
    encoder = bench.encoder(MAX_LENGTH)

    def mine(step: int) -> None:
        if config.negatives and step % config.refresh == 0 and step < trainer.steps:
            trainer.negatives = mine_negatives(
                encoder, trained.queries, trained.passages, trained.data.positives(),
                n=config.negatives, guard=config.guard,
            )  # fmt: skip
            print(f"{name}: mined at step {step}", file=sys.stderr, flush=True)

    log: list[dict[str, Any]] = []
    began = time.perf_counter()
    trainer.train(before_step=mine, report=lambda progress: log.append(progress._asdict()))
    trainer.finish()
    found = sum(map(len, trainer.negatives.values()))
    report["trainings"][name] = {
        "config": asdict(config),
        "pairs": len(trained.data.pairs),
        "passages": len(trained.passages),
        "negatives": found,
        "seconds": round(time.perf_counter() - began),
        "log": log,
    }
    print(f"{name}: trained, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def measure(bench: Bench, name: str, dataset: BeirDataset, max_length: int, report: dict[str, Any], out: Path) -> None:
    """One row of the report, unless it is there."""
    if any((row["variant"], row["dataset"]) == (name, dataset.name) for row in report["rows"]):
        return
    for texts, prefix in ((dataset.queries, bench.info.query_prefix), (dataset.corpus, bench.info.passage_prefix)):
        bench.encode_new(bench.tokenize(list(texts.values()), prefix, max_length), dataset.name)
    result = evaluate(bench.encoder(max_length), dataset)
    scores = {mode: result.modes[mode]["nDCG@10"] for mode in METHODS}
    report["rows"].append(
        {
            "variant": name, "dataset": dataset.name, "documents": result.documents, "queries": result.queries,
            "nDCG@10": scores,
        }
    )  # fmt: skip
    save(out, report)
    print(f"{name}, {dataset.name}: {scores}", file=sys.stderr, flush=True)


def _joined(parts: Sequence[States]) -> States:
    lengths = torch.cat([torch.diff(part.offsets) for part in parts])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(lengths, 0)])
    dense, ids, hidden = (torch.cat([part[i] for part in parts]) for i in range(3))
    return States(dense, ids, hidden, offsets)


def _rows(states: States, rows: torch.Tensor) -> States:
    starts, ends = states.offsets[rows].tolist(), states.offsets[rows + 1].tolist()
    at = torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    lengths = torch.tensor([0, *(end - start for start, end in zip(starts, ends, strict=True))])
    return States(states.dense[rows], states.ids[at], states.hidden[at], torch.cumsum(lengths, 0))


if __name__ == "__main__":
    main()
