"""Encoder: texts to Embeddings. Plans the batches, runs the session, and applies the definitions of scoring.py."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from m3edge.arguments import checked_integer, checked_texts
from m3edge.embeddings import Embeddings, SparseRows, TokenRows, concatenate, offsets_of
from m3edge.errors import CancelledError
from m3edge.model_folder import (
    DENSE_OUTPUT,
    FURTHER_CLS,
    SPARSE_OUTPUT,
    TOKENIZER,
    TOKENS_OUTPUT,
    VOCABULARY,
    ModelInfo,
    checked_model_folder,
)
from m3edge.progress import progress_bar
from m3edge.scoring import sparse_row
from m3edge.session import Session, open_session
from m3edge.tokenization import TokenizedText, Tokenizer

# The three heads, by the name of their part of Embeddings, and the graph output each comes from.
HEADS = {"dense": DENSE_OUTPUT, "sparse": SPARSE_OUTPUT, "tokens": TOKENS_OUTPUT}
ALL_HEADS = tuple(HEADS)

# Padded tokens a batch. Enough for a CPU's products to run at full rate; in larger batches more texts are padded, and
# attention with a mask takes half as long again (measured on mini int8: 512 gives a fifth more than 4096). GPUs want
# more.
_DEFAULT_BATCH_TOKENS = 512
_WORTH_A_RUN = 64  # tokens of equal texts that gain more from attention without a mask than they lose by fewer rows
_BLOCK_TEXTS = 4096  # texts tokenized and sorted by length together


class Encoder:
    """A loaded model. Safe to call from several threads.

    info: what the model is; session: the graph and the hardware it runs on
    mcls_interval: MCLS (arXiv 2402.03216): put a further `<s>` before every so many tokens of a text, and let the dense
        vector be the normalised mean of all their states. Helps a model on texts longer than it was trained on; the
        paper takes 256. None: the first token alone, or whatever the model's own pooling is
    """

    def __init__(
        self, info: ModelInfo, session: Session, tokenizer: Tokenizer, *, mcls_interval: int | None = None
    ) -> None:
        self.info = info
        self.session = session
        self.tokenizer = tokenizer
        self.mcls_interval = _checked_mcls_interval(mcls_interval, info)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        provider: str = "auto",
        *,
        n_threads: int | None = None,
        verify: bool = True,
        mcls_interval: int | None = None,
        cache: Path | str | None = None,
        hint: str = "latency",
    ) -> Encoder:
        """Load a model folder.

        provider:  "auto" for the best that is installed, or "native" (m3edge's own engine, for int8 on CPUs), "cpu"
            (onnxruntime), "cuda", "cuda:1" (the second GPU), "tensorrt", "directml", "coreml", "openvino",
            "openvino:GPU", "openvino:NPU", "openvino:bf16" (a CPU's bfloat16, where it has it)
        n_threads: CPU threads; by default as many as this process may use
        verify:    compare every file with its checksum first (about a second for 1.5 GB)
        mcls_interval: see Encoder; only for models that pool by their first token, as BGE-M3 does
        cache:     a folder where OpenVINO's compiled models are kept, so that the next start is quick; by default none
        hint:      "throughput" shares OpenVINO's threads out among many that call at once; "latency" gives all to each
        Raises FormatError for a folder that is damaged or no model, ProviderError when the provider does not really
        run, ImportError when its package is missing, ValueError for an mcls_interval the model cannot follow.
        """
        folder = Path(folder)
        with checked_model_folder(folder, verify=verify) as info:
            _checked_mcls_interval(mcls_interval, info)
            session = open_session(
                folder,
                provider,
                n_threads,
                max_length=info.max_length,
                cache=None if cache is None else Path(cache),
                hint=hint,
            )
            vocabulary = folder / VOCABULARY
            tokenizer = Tokenizer(folder / TOKENIZER, vocabulary if vocabulary.is_file() else None)
        return cls(info, session, tokenizer, mcls_interval=mcls_interval)

    def __repr__(self) -> str:
        return f"<Encoder {self.info.name}, {self.info.precision} on {self.provider}>"

    @property
    def provider(self) -> str:
        """The engine and device that really run: "native", "cpu", "cuda", "openvino", "openvino:GPU", …"""
        return self.session.provider

    def encode_queries(
        self,
        texts: str | Sequence[str],
        *,
        heads: Sequence[str] = ALL_HEADS,
        max_length: int | None = None,
        batch_tokens: int = _DEFAULT_BATCH_TOKENS,
        progress: bool | None = False,
        cancel: threading.Event | None = None,
    ) -> Embeddings:
        """Encode search queries: `encode` with the model's query prefix."""
        return self._encode(texts, self.info.query_prefix, heads, max_length, batch_tokens, progress, cancel)

    def encode_passages(
        self,
        texts: str | Sequence[str],
        *,
        heads: Sequence[str] = ALL_HEADS,
        max_length: int | None = None,
        batch_tokens: int = _DEFAULT_BATCH_TOKENS,
        progress: bool | None = False,
        cancel: threading.Event | None = None,
    ) -> Embeddings:
        """Encode texts to be searched: `encode` with the model's passage prefix."""
        return self._encode(texts, self.info.passage_prefix, heads, max_length, batch_tokens, progress, cancel)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        heads: Sequence[str] = ALL_HEADS,
        max_length: int | None = None,
        batch_tokens: int = _DEFAULT_BATCH_TOKENS,
        progress: bool | None = False,
        cancel: threading.Event | None = None,
    ) -> Embeddings:
        """Encode texts as they are, without a prefix.

        texts:        one text (n = 1) or several; an empty text is allowed
        heads:        which parts to compute, of "dense", "sparse", "tokens"; the others are None
        max_length:   tokens at which a text is cut, at most and by default the model's own limit
        batch_tokens: bound on the padded tokens in one run of the model (one text may exceed it alone)
        progress:     True shows a progress bar, None only when stderr is a terminal and it takes over a second
        cancel:       an event that, once set by another thread, stops the job between two batches
        returns the embeddings in the order of the texts; a text's vectors depend on the others' by rounding alone
        Raises TypeError when a text is no string, CancelledError when cancelled.
        """
        return self._encode(texts, "", heads, max_length, batch_tokens, progress, cancel)

    def _encode(
        self,
        texts: str | Sequence[str],
        prefix: str,
        heads: Sequence[str],
        max_length: int | None,
        batch_tokens: int,
        progress: bool | None,
        cancel: threading.Event | None,
    ) -> Embeddings:
        texts = checked_texts("texts", texts)
        heads = _checked_heads(heads)
        max_length = self._checked_max_length(max_length)
        batch_tokens = checked_integer("batch_tokens", batch_tokens)
        blocks = []
        done = 0
        with progress_bar(len(texts), "text", "encoding", progress) as bar:
            for start in range(0, max(1, len(texts)), _BLOCK_TEXTS):
                block = self.tokenizer.tokenize(
                    texts[start : start + _BLOCK_TEXTS],
                    prefix=prefix,
                    max_length=max_length,
                    mcls_interval=self.mcls_interval,
                )
                rows = _BlockRows(self.info, heads, block)
                lengths = [len(text.ids) for text in block]
                for batch in plan_batches(lengths, batch_tokens, may_pad=self._pads_anyway):
                    if cancel is not None and cancel.is_set():
                        raise CancelledError(f"encoding was cancelled after {done} of {len(texts)} texts")
                    members = [block[i] for i in batch]
                    outputs = self.session.run(*_padded(members, self.info.pad_id), [HEADS[head] for head in heads])
                    for row, i in enumerate(batch):
                        rows.put(i, {h: out[row] for h, out in zip(heads, outputs, strict=True)})
                    done += len(batch)
                    bar.update(len(batch))
                blocks.append(rows.embeddings())
        return concatenate(blocks)

    @property
    def _pads_anyway(self) -> bool:
        """Whether batches of equal lengths gain nothing: a GPU's are padded to a few shapes, "native" pads none."""
        return self.session.provider.partition(":")[0] not in ("cpu", "openvino")

    def _checked_max_length(self, max_length: int | None) -> int:
        if max_length is None:
            return self.info.max_length
        max_length = checked_integer("max_length", max_length, least=3)
        if max_length > self.info.max_length:
            raise ValueError(f"max_length must be from 3 to the model's {self.info.max_length}, got {max_length}")
        return max_length


class _BlockRows:
    """Takes the outputs of a block's texts in any order and gives them back as Embeddings in the order of the texts."""

    def __init__(self, info: ModelInfo, heads: Sequence[str], block: Sequence[TokenizedText]) -> None:
        self._heads = heads
        self._block = block
        self._dropped_ids = np.array(info.special_ids, np.int64)
        self._dense = np.empty((len(block), info.dense_dim if "dense" in heads else 0), np.float32)
        self._sparse: list = [None] * len(block)
        # In their final place at once: of a long text they are the largest thing there is, and would be there twice.
        self._offsets = offsets_of([len(text.content) for text in block])
        n_vectors = int(self._offsets[-1]) if "tokens" in heads else 0
        self._vectors = np.empty((n_vectors, info.token_dim), np.float32)

    def put(self, i: int, outputs: dict[str, np.ndarray]) -> None:
        """outputs: dense [d], sparse [seq] and tokens [seq, dt] of text i, padding still at the end."""
        text = self._block[i]
        content = text.content
        if "dense" in outputs:
            self._dense[i] = outputs["dense"]
        if "sparse" in outputs:
            self._sparse[i] = sparse_row(text.ids[content], outputs["sparse"][content], self._dropped_ids)
        if "tokens" in outputs:
            vectors = self._vectors[self._offsets[i] : self._offsets[i + 1]]
            np.take(outputs["tokens"], content, axis=0, out=vectors, mode="clip")  # the other modes need a buffer

    def embeddings(self) -> Embeddings:
        sparse = None
        if "sparse" in self._heads:
            flat = zip(*self._sparse, strict=True) if self._sparse else ([], [], [])
            parts = [
                np.concatenate([np.empty(0, dtype), *arrays])
                for dtype, arrays in zip((np.int64, np.float32, np.int32), flat, strict=True)
            ]
            sparse = SparseRows._make([*parts, offsets_of([len(row[0]) for row in self._sparse])])
        return Embeddings(
            dense=self._dense if "dense" in self._heads else None,
            sparse=sparse,
            tokens=TokenRows(self._vectors, self._offsets) if "tokens" in self._heads else None,
            truncated=np.array([text.truncated for text in self._block], bool),
        )


def plan_batches(lengths: Sequence[int], batch_tokens: int, *, may_pad: bool = False) -> Iterator[list[int]]:
    """Group texts of similar length: yields lists of positions, longest texts first.

    A batch's padded size, its longest text times its texts, stays within batch_tokens unless it is one text. Unless
    `may_pad`, a batch that would be padded ends with its last text of the first one's length, if so much is worth a run
    of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable: equal lengths stay in input order
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        batch = order[start : start + max(1, batch_tokens // max(1, longest))]
        if lengths[batch[-1]] < longest and not may_pad:
            equal = [i for i in batch if lengths[i] == longest]
            if len(equal) * longest >= _WORTH_A_RUN:
                batch = equal
        yield batch
        start += len(batch)


def _padded(texts: Sequence[TokenizedText], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask, int64 [batch, seq]."""
    longest = max(len(text.ids) for text in texts)
    input_ids = np.full((len(texts), longest), pad_id, np.int64)
    attention_mask = np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        input_ids[row, : len(text.ids)] = text.ids
        attention_mask[row, : len(text.ids)] = 1
        attention_mask[row, text.further_cls] = FURTHER_CLS
    return input_ids, attention_mask


def _checked_mcls_interval(interval: int | None, info: ModelInfo) -> int | None:
    if interval is None:
        return None
    interval = checked_integer("mcls_interval", interval, least=2)
    if info.pooling != "cls":
        raise ValueError(f"mcls_interval needs a model that pools by its first token; {info.name!r} takes the mean")
    if not info.mcls:
        raise ValueError(f"mcls_interval needs a newer export of {info.name!r}: its graph does not know further <s>")
    return interval


def _checked_heads(heads: str | Iterable[str]) -> tuple[str, ...]:
    if not isinstance(heads, Iterable):
        raise TypeError(f"heads must be one or more of {list(HEADS)}, got {type(heads).__name__}")
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    if not heads or any(head not in ALL_HEADS for head in heads):
        raise ValueError(f"heads must be one or more of {list(HEADS)}, got {list(heads)}")
    return tuple(dict.fromkeys(heads))
