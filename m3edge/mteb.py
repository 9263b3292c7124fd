"""m3edge as models that the package `mteb` evaluates: its dense vectors alone, or its whole hybrid search.

    import mteb
    from m3edge.mteb import MtebEncoder, MtebSearch
    mteb.evaluate(MtebEncoder("models/mini-int8"), mteb.get_tasks(...))
    mteb.evaluate(MtebSearch("models/mini-int8", weights="general"), mteb.get_tasks(task_types=["Retrieval"]))

mteb brings PyTorch with it (`pip install 'm3edge[mteb]'`); this module imports neither before a model is made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3edge.encoder import Encoder
from m3edge.index import Document, Index


class MtebEncoder:
    """mteb's EncoderProtocol over the dense vectors: for every type of task.

    Queries and documents get the model's own prefixes; texts of tasks that are neither are encoded as queries, as
    multilingual-e5 wants it for symmetric tasks and as makes no difference for BGE-M3.
    """

    def __init__(self, model: Encoder | Path | str, revision: str | None = None, *, device: str | None = None) -> None:
        """model: a loaded Encoder or a model folder; revision and device are mteb's, and not used."""
        self._encoder = model if isinstance(model, Encoder) else Encoder.load(model)
        self._meta = _model_meta(self._encoder, "dense")

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the model."""
        return self._meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **options: Any,
    ) -> np.ndarray:
        """inputs: batches with their texts under "text"; returns float32 [n, dim], unit length."""
        texts = [text for batch in inputs for text in batch["text"]]
        is_document = prompt_type is not None and str(getattr(prompt_type, "value", prompt_type)) == "document"
        encode = self._encoder.encode_passages if is_document else self._encoder.encode_queries
        dense = encode(texts, heads=["dense"]).dense
        assert dense is not None
        return dense

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Inner products, [n1, n2], as mteb's tensors."""
        from mteb.similarity_functions import dot_score

        return dot_score(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Inner products of rows that belong together, [n], as mteb's tensors."""
        from mteb.similarity_functions import pairwise_dot_score

        return pairwise_dot_score(embeddings1, embeddings2)


class MtebSearch:
    """mteb's SearchProtocol over an Index: for retrieval tasks, and for reranking of what others found."""

    def __init__(
        self,
        model: Encoder | Path | str,
        *,
        weights: str | Sequence[float] = "general",
        lexical: str = "m3",
        token_codec: str = "int8",
    ) -> None:
        """model: a loaded Encoder or a model folder; the others as in `Index.search` and `Index.create`."""
        self._encoder = model if isinstance(model, Encoder) else Encoder.load(model)
        self._options: dict[str, Any] = {"weights": weights, "lexical": lexical}
        self._token_codec = token_codec
        written = weights if isinstance(weights, str) else "-".join(f"{weight:g}" for weight in weights)
        self._meta = _model_meta(self._encoder, f"search-{written}-{lexical}-{token_codec}")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._index: Index | None = None

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the model."""
        return self._meta

    def index(
        self,
        corpus: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Any,
        num_proc: int | None = None,
        **options: Any,
    ) -> None:
        """Build an index of the corpus in a temporary folder; the one of the task before is removed."""
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="m3edge-mteb-")
        self._index = Index.create(Path(self._folder.name) / "index", self._encoder, token_codec=self._token_codec)
        self._index.add(_documents(corpus))

    def search(
        self,
        queries: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Any,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **options: Any,
    ) -> dict[str, dict[str, float]]:
        """For each query's id the scores of the best documents by id; of those in top_ranked alone where it is given.

        Raises ValueError before `index` was called.
        """
        if self._index is None:
            raise ValueError("search needs an index: call index() first")
        result = {}
        for query in queries:
            k = top_k if top_ranked is None else len(self._index)
            hits = self._index.search(query["text"], k, **self._options)
            if top_ranked is not None:
                allowed = set(top_ranked[query["id"]])
                hits = [hit for hit in hits if hit.id in allowed]
            result[query["id"]] = {hit.id: hit.score for hit in hits}
        return result

    def close(self) -> None:
        """Remove the index."""
        if self._index is not None:
            self._index.close()
            self._index = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _documents(corpus: Iterable[Mapping[str, Any]]) -> Iterator[Document]:
    for row in corpus:
        yield Document(row["id"], f"{row.get('title') or ''} {row['text']}".strip())


def _model_meta(encoder: Encoder, way: str) -> Any:
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ImportError as error:
        raise ImportError("an evaluation with mteb needs it: pip install 'm3edge[mteb]'") from error
    info = encoder.info
    return ModelMeta.create_empty(
        {
            "name": f"m3edge/{info.name}-{info.precision}-{way}",
            "revision": info.fingerprint[:12],
            "max_tokens": info.max_length,
            "embed_dim": info.dense_dim,
            "framework": ["ONNX"],
            "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
            "use_instructions": bool(info.query_prefix or info.passage_prefix),
        }
    )
