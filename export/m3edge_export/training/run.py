"""One training, from a checkpoint and files of pairs to a new checkpoint.

While it runs, all it needs to go on after being killed lies in OUT.training; the same command goes on from there.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from m3edge.errors import FormatError
from m3edge.evaluation import BeirDataset, evaluate
from m3edge.files import new_folder, write_atomically
from m3edge.tokenization import Tokenizer
from m3edge_export.checkpoint import TOKENIZER, Checkpoint, load_checkpoint, model_info, save_checkpoint
from m3edge_export.deltas import write_deltas
from m3edge_export.folders import require_place
from m3edge_export.training.batching import IndexedPair
from m3edge_export.training.data import DataFile, Pair, describe_bad_lines, read_pairs, sample_passages
from m3edge_export.training.encoder import states_encoder, torch_encoder
from m3edge_export.training.heads import prepare_heads
from m3edge_export.training.lora import attach_lora, lora_factors, merge_lora
from m3edge_export.training.negatives import mine_negatives
from m3edge_export.training.passes import CachedPass, FrozenPass, LivePass, Pass
from m3edge_export.training.states import encode_states
from m3edge_export.training.trainer import Progress, Trainer, Training, TrainingData, plan

LOG = "training.jsonl"  # in the new checkpoint: the settings, then one line for each report and evaluation
_STATE = "state.pt"
_START_PASSAGES = 500  # whose hidden states prepare_heads looks at

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training is given besides its configuration."""

    fresh_heads: bool = False  # start the heads anew instead of from those of the checkpoint
    max_length: int = 256  # tokens of a text
    device: str = "cpu"
    datasets: Sequence[BeirDataset] = ()  # evaluated along the way
    evaluate_every: int = 0  # steps; 0: only at the end
    save_every: int = 100  # steps
    deltas: Path | None = None  # also write what changed, as one small file


def train_checkpoint(
    source: str | Path,
    out: Path,
    files: Sequence[DataFile],
    config: Training,
    run: Run,
    log: Log = lambda line: None,
) -> None:
    """Train the checkpoint `source` and write the new checkpoint folder `out`, or go on with that after a kill.

    Raises FormatError for a bad source or data file, or when OUT.training comes from another command;
    FileExistsError when `out` is there.
    """
    require_place(out)
    if run.deltas is not None and config.stage == "full":
        raise ValueError("deltas hold heads and low-rank changes; with stage 'full' every weight changes")
    torch.manual_seed(config.seed)
    checkpoint = load_checkpoint(source, attention="sdpa")
    pairs = load_pairs(files, config.seed, log)
    texts = _Texts(checkpoint, pairs, run.max_length)
    if not plan(texts.data, config, epoch=0):
        raise FormatError("no file has two different passages: without a second one there is no negative to learn from")
    work = _Work(out.with_name(f"{out.name}.training"), _settings(checkpoint, files, config, run))
    way = _prepare(checkpoint, texts, config, run)
    trainer = Trainer(checkpoint.model, way, texts.data, checkpoint.special_ids().dropped, config)
    if (state := work.load()) is not None:
        trainer.resume(state)
        log(f"{work.folder}: going on after step {trainer.step}")

    info, tokenizer = model_info(checkpoint), Tokenizer(checkpoint.folder / TOKENIZER)
    encoder = torch_encoder(checkpoint.model, info, tokenizer)
    miner = encoder
    if isinstance(way, FrozenPass):
        # The encoder has read every text already: mining again costs no more than the heads and a search.
        known = [(texts.data.queries, way.queries), (texts.data.passages, way.passages)]
        miner = states_encoder(checkpoint.model, replace(info, max_length=texts.max_length), tokenizer, known)

    def before_step(step: int) -> None:
        mining_due = step == 0 or (config.refresh and step % config.refresh == 0)
        if config.negatives and mining_due and step < trainer.steps:
            trainer.negatives = mine_negatives(
                miner, texts.queries, texts.passages, texts.data.positives(), n=config.negatives, guard=config.guard
            )
            found = sum(map(len, trainer.negatives.values()))
            log(f"step {step}  mined {found} negatives for {len(trainer.negatives)} queries")
        if step and step % run.save_every == 0 and step < trainer.steps:
            work.save(trainer.state())
        if step == trainer.steps or (run.evaluate_every and step % run.evaluate_every == 0):
            for dataset in run.datasets:
                result = evaluate(encoder, dataset)
                scores = {mode: values["nDCG@10"] for mode, values in result.modes.items()}
                work.record({"step": step, "dataset": dataset.name, "nDCG@10": scores})
                parts = "  ".join(f"{mode} {value:.3f}" for mode, value in scores.items())
                log(f"step {step}  nDCG@10 on {dataset.name}: {parts}")

    def report(progress: Progress) -> None:
        work.record(progress._asdict())
        log(describe(progress))

    trainer.train(before_step=before_step, report=report)
    trainer.finish()
    model = checkpoint.model.cpu()
    with new_folder(out) as folder:
        if run.deltas is not None:
            write_deltas(run.deltas, model, lora_factors(model))
        if config.stage == "lora":
            merge_lora(model)
        save_checkpoint(folder, model, checkpoint.settings, checkpoint.tokenizer_files())
        shutil.copyfile(work.folder / LOG, folder / LOG)
    shutil.rmtree(work.folder)


def load_pairs(files: Sequence[DataFile], seed: int, log: Log) -> list[Pair]:
    """The training pairs of all files, saying what was left out. Raises FormatError when a file holds none."""
    pairs: list[Pair] = []
    for path, n_passages in files:
        found, bad = read_pairs(path)
        if bad:
            log(describe_bad_lines(bad))
        if not found:
            raise FormatError(f"{path}: holds no pair; expected lines of {{'query': …, 'positive': …}}")
        chosen = sample_passages(found, n_passages, seed)
        log(f"{path.name}: {len(chosen)} of {len(found)} pairs")
        pairs += chosen
    return pairs


def describe(progress: Progress) -> str:
    """One line of the training log."""
    accuracies = "  ".join(f"{name} {value:.3f}" for name, value in progress.accuracy.items())
    return (
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  in-batch accuracy: {accuracies}  "
        f"{progress.tokens_per_second:.0f} tokens/s, {progress.padding:.0%} padding"
    )


class _Texts:
    """The distinct texts of the pairs, as they are and as token ids."""

    def __init__(self, checkpoint: Checkpoint, pairs: Sequence[Pair], max_length: int) -> None:
        settings = checkpoint.settings
        self.queries = list(dict.fromkeys(pair.query for pair in pairs))
        self.passages = list(dict.fromkeys(pair.positive for pair in pairs))
        query_places = {text: place for place, text in enumerate(self.queries)}
        passage_places = {text: place for place, text in enumerate(self.passages)}
        tokenizer = Tokenizer(checkpoint.folder / TOKENIZER)
        self.max_length = max_length = min(max_length, settings.max_length)
        self.data = TrainingData(
            tokenizer.tokenize(self.queries, prefix=settings.query_prefix, max_length=max_length),
            tokenizer.tokenize(self.passages, prefix=settings.passage_prefix, max_length=max_length),
            [IndexedPair(query_places[pair.query], passage_places[pair.positive], pair.source) for pair in pairs],
        )


def _prepare(checkpoint: Checkpoint, texts: _Texts, config: Training, run: Run) -> Pass:
    """Fresh heads and adapters where they are asked for, and the way the texts get their states."""
    model, data = checkpoint.model.to(run.device), texts.data
    if run.fresh_heads:
        step = max(1, len(data.passages) // _START_PASSAGES)
        prepare_heads(model, encode_states(model, data.passages[::step]))
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(config.stage == "full")
    if config.stage == "lora":
        attach_lora(model, config.rank)
    if config.stage == "heads":
        return FrozenPass(encode_states(model, data.queries), encode_states(model, data.passages), run.device)
    kind = CachedPass if config.cache_gradients else LivePass
    return kind(model, data.queries, data.passages, config.sub_batch_tokens)


def _settings(checkpoint: Checkpoint, files: Sequence[DataFile], config: Training, run: Run) -> dict[str, Any]:
    """What must be the same for a killed training to go on; the first line of the log."""
    return {
        "source": checkpoint.source,
        "fingerprint": model_info(checkpoint).fingerprint,
        "data": [[file.path.name, file.path.stat().st_size, file.n_passages] for file in files],
        "training": asdict(config),
        "fresh_heads": run.fresh_heads,
        "max_length": run.max_length,
    }


class _Work:
    """The folder of an unfinished training: its settings and log, and the state it can go on from."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._log = folder / LOG
        self._settings = json.loads(json.dumps(settings))  # as they come back from the file
        if folder.is_dir() and self._log.is_file():
            if self._records()[:1] != [self._settings]:
                raise FormatError(f"{folder}: left by a training with other settings or data; remove it to start anew")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._write([])

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or None; the log forgets what came after it."""
        path = self.folder / _STATE
        records = self._records()[1:]
        if not path.is_file():
            self._write([])
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise FormatError(f"{path}: damaged ({error}); remove {self.folder} to start anew") from error
        self._write([record for record in records if record["step"] <= state["step"]])
        return state

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.folder / _STATE, buffer.getvalue())

    def record(self, record: dict[str, Any]) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _records(self) -> list[dict[str, Any]]:
        lines = self._log.read_text(encoding="utf-8").splitlines()
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return [json.loads(line) for line in lines[:-1]]  # killed while it wrote the last one

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in [self._settings, *records])
        write_atomically(self._log, text.encode())
