"""One training, from a checkpoint and files of pairs to a new checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import nn

from m3edge.errors import FormatError
from m3edge.files import new_folder, write_atomically
from m3edge_export.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, special_ids
from m3edge_export.model import M3Model
from m3edge_export.training.data import Pair, describe_bad_lines, read_pairs, sample_passages
from m3edge_export.training.heads import HeadTraining, IndexedPair, Progress, prepare_heads, train_heads
from m3edge_export.training.states import States, encode_states

Log = Callable[[str], None]


class Corpus(NamedTuple):
    """Encoded training data; the pairs name rows of the two."""

    queries: States
    passages: States
    pairs: list[IndexedPair]


def train_checkpoint(
    source: str | Path,
    out: Path,
    data: Sequence[Path],
    config: HeadTraining,
    *,
    fresh_heads: bool,
    n_passages: int,
    max_length: int,
    heads_file: Path | None = None,
    log: Log = lambda line: None,
) -> None:
    """Train the heads of the checkpoint `source` and write the new checkpoint folder `out`.

    fresh_heads: start anew instead of from the heads that the checkpoint has
    n_passages:  at most so many distinct passages from each file, with all their queries
    heads_file:  also write the heads alone, in half precision
    """
    torch.manual_seed(config.seed)
    with new_folder(out) as folder:
        checkpoint = load_checkpoint(source, attention="sdpa")
        corpus = encode_corpus(checkpoint, load_pairs(data, n_passages, config.seed, log), max_length)
        model = checkpoint.model
        if fresh_heads:
            prepare_heads(model, corpus.passages)
        train_heads(
            model, corpus.queries, corpus.passages, corpus.pairs, special_ids(checkpoint).dropped, config,
            report=lambda progress: log(describe(progress)),
        )  # fmt: skip
        save_checkpoint(folder, model, checkpoint.settings, checkpoint.tokenizer_files())
        if heads_file is not None:
            write_atomically(heads_file, heads_bytes(model))


def load_pairs(paths: Sequence[Path], n_passages: int, seed: int, log: Log) -> list[Pair]:
    """The training pairs of all files, saying what was left out. Raises FormatError when a file holds none."""
    pairs: list[Pair] = []
    for path in paths:
        found, bad = read_pairs(path)
        if bad:
            log(describe_bad_lines(bad))
        if not found:
            raise FormatError(f"{path}: holds no pair; expected lines of {{'query': …, 'positive': …}}")
        chosen = sample_passages(found, n_passages, seed)
        log(f"{path.name}: {len(chosen)} of {len(found)} pairs")
        pairs += chosen
    return pairs


def encode_corpus(checkpoint: Checkpoint, pairs: Sequence[Pair], max_length: int) -> Corpus:
    """The hidden states of every distinct query and passage."""
    queries = {text: row for row, text in enumerate(dict.fromkeys(pair.query for pair in pairs))}
    passages = {text: row for row, text in enumerate(dict.fromkeys(pair.positive for pair in pairs))}
    settings = checkpoint.settings
    max_length = min(max_length, settings.max_length)
    return Corpus(
        encode_states(checkpoint, list(queries), prefix=settings.query_prefix, max_length=max_length),
        encode_states(checkpoint, list(passages), prefix=settings.passage_prefix, max_length=max_length),
        [IndexedPair(queries[pair.query], passages[pair.positive], pair.source) for pair in pairs],
    )


def describe(progress: Progress) -> str:
    """One line of the training log."""
    accuracies = "  ".join(f"{name} {value:.3f}" for name, value in progress.accuracy.items())
    return f"step {progress.step}  loss {progress.loss:.4f}  in-batch accuracy: {accuracies}"


def heads_bytes(model: M3Model) -> bytes:
    """Both heads as a safetensors file in half precision: what the mini model ships."""
    heads: dict[str, nn.Linear] = {"sparse_head": model.sparse_head, "token_head": model.token_head}
    tensors = {
        f"{name}.{kind}": getattr(head, kind).detach().half().contiguous()
        for name, head in heads.items()
        for kind in ("weight", "bias")
    }
    return save(tensors)
