"""From a checkpoint to a model folder: load, trace, compare, describe. All of it or nothing is left on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from m3edge.files import new_folder
from m3edge.model_folder import TOKENIZER, ModelInfo, write_manifest
from m3edge_export.checkpoint import Checkpoint, fingerprint, load_checkpoint, special_ids
from m3edge_export.graph import export_graph
from m3edge_export.verify import TOLERANCE_FP32, verify

TOLERANCES = {"fp32": TOLERANCE_FP32}  # precision -> largest absolute difference from the PyTorch model


def export_onnx(source: str | Path, out: Path, *, precision: str = "fp32", name: str | None = None) -> ModelInfo:
    """Export a checkpoint to the new model folder `out` and return its description.

    source:    a checkpoint folder, or a hub id such as "BAAI/bge-m3"
    precision: one of TOLERANCES
    name:      the model's name in its folder; otherwise the checkpoint's

    Raises FormatError for a bad checkpoint, ParityError when the graph does not compute what the model computes,
    FileExistsError when `out` is there; in each case nothing is left behind.
    """
    if precision not in TOLERANCES:
        raise ValueError(f"precision must be one of {sorted(TOLERANCES)}, got {precision!r}")
    with new_folder(out) as folder:
        checkpoint = load_checkpoint(source)
        export_graph(checkpoint.model, folder)
        shutil.copyfile(checkpoint.folder / TOKENIZER, folder / TOKENIZER)
        parity = verify(folder, checkpoint, tolerance=TOLERANCES[precision])
        info = describe(checkpoint, precision=precision, name=name, parity=parity)
        write_manifest(folder, info)
    return info


def describe(checkpoint: Checkpoint, *, precision: str, name: str | None, parity: dict[str, float]) -> ModelInfo:
    """What the runtime has to know about a checkpoint that was exported."""
    model, settings, specials = checkpoint.model, checkpoint.settings, special_ids(checkpoint)
    return ModelInfo(
        name=name or settings.name,
        source=checkpoint.source,
        revision=checkpoint.revision,
        fingerprint=fingerprint(checkpoint),
        precision=precision,
        dense_dim=model.hidden_size,
        token_dim=model.token_dim,
        pooling=settings.pooling,
        query_prefix=settings.query_prefix,
        passage_prefix=settings.passage_prefix,
        max_length=settings.max_length,
        vocab_size=int(model.config.vocab_size),
        cls_id=specials.cls,
        eos_id=specials.eos,
        pad_id=specials.pad,
        special_ids=specials.dropped,
        presets=settings.presets,
        parity=parity,
    )
