"""From a checkpoint to model folders: trace once, fuse, and for each precision write, compare with PyTorch, describe.

All of it or nothing is left on disk.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from m3edge.model_folder import (
    GRAPH,
    PRECISIONS,
    STATIC_GRAPH,
    STATIC_WEIGHTS,
    TOKENIZER,
    VOCABULARY,
    ModelInfo,
    write_manifest,
)
from m3edge.vocabulary import write_vocabulary
from m3edge_export.calibrate import calibrate, calibration_texts
from m3edge_export.checkpoint import load_checkpoint, model_info
from m3edge_export.folders import new_folders
from m3edge_export.fuse import fuse
from m3edge_export.graph import check_exportable, export_graph
from m3edge_export.half import blocked_layers, layer_values, write_fp16
from m3edge_export.layers import write_layers
from m3edge_export.quantize import Statistics, product_inputs, write_fp32, write_int4, write_int8
from m3edge_export.static import write_static
from m3edge_export.tokenizer_file import read_tokenizer
from m3edge_export.verify import reference_outputs, verify, verify_fused
from m3edge_export.weights import WeightReader, WeightWriter


def export_onnx(
    source: str | Path,
    out: Path,
    *,
    precision: str = "fp32",
    name: str | None = None,
    calibration: Path | None = None,
    openvino: bool = False,
) -> ModelInfo:
    """Export a checkpoint to the new model folder `out` and return its description; see export_precisions."""
    return export_precisions(source, {precision: out}, name=name, calibration=calibration, openvino=openvino)[precision]


def export_precisions(
    source: str | Path,
    outs: Mapping[str, Path],
    *,
    name: str | None = None,
    calibration: Path | None = None,
    openvino: bool = False,
) -> dict[str, ModelInfo]:
    """Export a checkpoint in several precisions; it is loaded, traced and calibrated once.

    source:      a checkpoint folder, or a hub id such as "BAAI/bge-m3"
    outs:        one of PRECISIONS -> the new model folder
    name:        the model's name in its folders; otherwise the checkpoint's
    calibration: a file of texts like those to be searched; otherwise the package's own in many languages
    openvino:    also write the static graph that OpenVINO runs, to int8's folder
    returns precision -> what was written

    Raises FormatError for a bad checkpoint or calibration file, ParityError when a graph computes something else than
    the model, FileExistsError when a folder is there or cannot be; in each case nothing is left behind.
    """
    unknown = sorted(set(outs) - set(PRECISIONS))
    if unknown or not outs:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {unknown}")
    if openvino and "int8" not in outs:
        raise ValueError(f"openvino needs precision int8, got {list(outs)}")
    texts = calibration_texts(calibration) if {"int8", "fp16", "int4"} & set(outs) else []
    infos = {}
    with new_folders(list(outs.values())) as made:
        folders = dict(zip(outs, made, strict=True))
        # Beside what is written, where there must be room anyway; gone with it when the export fails.
        work = Path(tempfile.mkdtemp(dir=next(iter(folders.values())), prefix=".work."))
        checkpoint = load_checkpoint(source)
        check_exportable(checkpoint.model.config)
        reference = reference_outputs(checkpoint)
        info = model_info(checkpoint, name=name)
        tokenizer = read_tokenizer(checkpoint.folder / TOKENIZER)
        tokenizer_path = checkpoint.folder / TOKENIZER
        config = checkpoint.model.config
        export_graph(checkpoint.model, work)
        del checkpoint  # a large model's weights are in memory no longer, only in the traced graph's file
        gc.collect()  # modules refer to each other
        graph = onnx.load(work / GRAPH, load_external_data=False)
        graph.producer_name = "m3edge"
        graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = info.dense_dim  # the tracer loses it
        n_heads = config.num_attention_heads
        counts = fuse(graph, n_layers=config.num_hidden_layers, n_heads=n_heads)
        prefixes = (info.query_prefix, info.passage_prefix)
        inputs = product_inputs(graph) if {"int8", "int4"} & set(outs) else []
        watched = [*inputs, *(layer_values(graph) if "fp16" in outs else [])]
        if "fp32" not in outs:  # where it is, the fused graph is compared as what it is
            verify_fused(graph, work, reference)
        statistics = (
            calibrate(graph, work, watched, tokenizer, texts, prefixes, info.max_length, with_moments=inputs)
            if watched
            else {}
        )
        for precision, folder in folders.items():
            notes = {"fused": counts._asdict(), **_write(graph, work, folder, precision, statistics)}
            if precision == "int8":
                written = onnx.load(folder / GRAPH, load_external_data=False)
                write_layers(written, folder, n_heads=n_heads, pooling=info.pooling, pad_id=config.pad_token_id)
                if openvino:
                    _write_static(graph, work, written, folder, statistics, n_heads)
            shutil.copyfile(tokenizer_path, folder / TOKENIZER)
            write_vocabulary(folder / VOCABULARY, tokenizer)
            parity = verify(folder, reference, precision, notes)
            infos[precision] = replace(info, precision=precision, parity=parity)
        shutil.rmtree(work)
        for precision, folder in folders.items():
            write_manifest(folder, infos[precision])
    return infos


def _write(fused: ModelProto, work: Path, folder: Path, precision: str, statistics: Statistics) -> dict[str, Any]:
    """Write one precision's graph and weights; returns what the parity report is to say of them."""
    model = ModelProto.FromString(fused.SerializeToString())
    notes: dict[str, Any] = {}
    with WeightWriter(folder) as writer:
        reader = WeightReader(fused.graph, work)
        if precision == "int8":
            write_int8(model, reader, writer, statistics)
        elif precision == "int4":
            write_int4(model, reader, writer, statistics)
        elif precision == "fp16":
            notes["fp32_layers"] = blocked_layers(model, {name: seen.magnitude for name, seen in statistics.items()})
            write_fp16(model, reader, writer, notes["fp32_layers"])
        else:
            write_fp32(model, reader, writer)
    _save(model, folder / GRAPH)
    return notes


def _write_static(
    fused: ModelProto, work: Path, dynamic: ModelProto, folder: Path, statistics: Statistics, n_heads: int
) -> None:
    """Write the static graph beside the int8 graph, `dynamic`, that is in the folder already."""
    reader, dynamic_reader = WeightReader(fused.graph, work), WeightReader(dynamic.graph, folder)
    with WeightWriter(folder, STATIC_WEIGHTS) as writer:
        static = write_static(fused, reader, dynamic, dynamic_reader, writer, statistics, n_heads=n_heads)
    _save(static, folder / STATIC_GRAPH)


def _save(model: ModelProto, path: Path) -> None:
    onnx.save(model, path)
    onnx.checker.check_model(str(path))
