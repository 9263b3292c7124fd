"""Texts to token ids, with the model folder's tokenizer.json: prefixes and truncation, nothing of vectors."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.errors import FormatError
from m3edge.kernels import Unigram
from m3edge.vocabulary import read_vocabulary


class TokenizedText(NamedTuple):
    """One text as the model reads it.

    ids:       int64 [n], `<s>` prefix … text … `</s>`
    n_prefix:  how many of them, after the first `<s>`, belong to the prefix, with each further `<s>` among them
    truncated: True when the text's end was left out
    further_cls: int64 [m], where in `ids` further `<s>` stand, put there for MCLS
    """

    ids: np.ndarray
    n_prefix: int
    truncated: bool
    further_cls: np.ndarray = np.empty(0, np.int64)

    @property
    def content(self) -> np.ndarray:
        """Where the text's own tokens and `</s>` lie, int64: everything but each `<s>` and the prefix."""
        places = np.arange(1 + self.n_prefix, len(self.ids))
        return places if len(self.further_cls) == 0 else np.setdiff1d(places, self.further_cls, assume_unique=True)


class Tokenizer:
    """The model's tokenizer. Safe to call from several threads.

    path:       tokenizer.json
    vocabulary: the same vocabulary in the form of m3edge.vocabulary, if there is one: with it, and with the native
        kernels, tokenizer.json is not parsed before it is needed
    """

    def __init__(self, path: Path, vocabulary: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._parsed: Any = None
        self._prefixes: dict[str, np.ndarray] = {}  # their ids; a model has two or three
        self._mapped = _Mapped(vocabulary) if vocabulary is not None and Unigram is not None else None
        if self._mapped is None:
            self._whole()

    def tokenize(
        self, texts: Sequence[str], *, prefix: str, max_length: int, mcls_interval: int | None = None
    ) -> list[TokenizedText]:
        """Each text with `prefix` before it, cut at `max_length` tokens with its last token, `</s>`, kept.

        mcls_interval: put a further `<s>` before every so many tokens; they count towards max_length
        A lone surrogate, which no UTF-8 text can hold, counts as U+FFFD.
        """
        prefix_ids = self._prefix_ids(prefix)
        result = []
        for ids in self._ids([prefix + text for text in texts]):
            further_cls = _further_cls(len(ids), mcls_interval, max_length)
            room = max_length - len(further_cls)
            truncated = len(ids) > room
            if truncated:
                ids = np.concatenate([ids[: room - 1], ids[-1:]])
            n_prefix = _common_run(ids[1:-1], prefix_ids)
            if len(further_cls):
                before = further_cls - np.arange(len(further_cls))  # the tokens they are put before
                ids = np.insert(ids, before, ids[0])
                n_prefix += int(np.count_nonzero(before <= n_prefix))
            result.append(TokenizedText(ids, n_prefix, truncated, further_cls))
        return result

    def token(self, token_id: int) -> str:
        """The vocabulary's spelling of a token, "▁file" for example."""
        return self._whole().id_to_token(int(token_id)) or f"<{int(token_id)}>"

    def spans(self, text: str) -> np.ndarray:
        """Where each token of a text lies in it: int64 [n, 2], start and end in characters, no special tokens."""
        encoding = self._whole().encode(_encodable(text), add_special_tokens=False)
        return np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def _prefix_ids(self, prefix: str) -> np.ndarray:
        if prefix not in self._prefixes:
            self._prefixes[prefix] = self._ids([prefix])[0][1:-1]
        return self._prefixes[prefix]

    def _ids(self, texts: list[str]) -> list[np.ndarray]:
        texts = [_encodable(text) for text in texts]
        if self._mapped is not None:
            ids = self._mapped.ids(texts)
            if ids is not None:
                return ids
        return [np.array(encoding.ids, np.int64) for encoding in self._whole().encode_batch_fast(texts)]

    def _whole(self) -> Any:
        """Hugging Face's tokenizer of the whole tokenizer.json, parsed when first asked for."""
        with self._lock:
            if self._parsed is None:
                from tokenizers import Tokenizer as HuggingFaceTokenizer  # late: `import m3edge` stays light

                parsed = HuggingFaceTokenizer.from_file(str(self._path))
                # Length is ours to cut and pad: what the file says about it would change results from call to call.
                parsed.no_truncation()
                parsed.no_padding()
                self._parsed = parsed
            return self._parsed


class _Mapped:
    """The same ids as Hugging Face's tokenizer gives, for texts without the name of a special token in them."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        vocabulary = read_vocabulary(path)
        around = HuggingFaceTokenizer.from_str(json.dumps(vocabulary.settings))
        self._normalizer, self._pre_tokenizer = around.normalizer, around.pre_tokenizer
        self._special = re.compile("|".join(map(re.escape, vocabulary.special)) or r"(?!)")
        self._before = np.array(vocabulary.before, np.int64)
        self._after = np.array(vocabulary.after, np.int64)
        try:
            self._unigram = Unigram(
                vocabulary.scores, vocabulary.first, vocabulary.ids, vocabulary.labels, vocabulary.unknown_id
            )
        except ValueError as error:
            raise FormatError(f"{path}: damaged ({error}); export the model again") from error

    def ids(self, texts: list[str]) -> list[np.ndarray] | None:
        """int64 [n] of each, with the special tokens at the ends; None if a special token's name is in one of them."""
        if any(map(self._special.search, texts)):
            return None
        if self._normalizer is not None:
            texts = [self._normalizer.normalize_str(text) for text in texts]
            if any(map(self._special.search, texts)):  # some tokens are looked for in what a text becomes
                return None
        return [np.concatenate([self._before, self._unigram.segment(self._words(text)), self._after]) for text in texts]

    def _words(self, text: str) -> list[str]:
        if self._pre_tokenizer is None:
            return [text]
        return [word for word, _ in self._pre_tokenizer.pre_tokenize_str(text)]


def _further_cls(length: int, interval: int | None, max_length: int) -> np.ndarray:
    """Where further `<s>` come to stand in a text of so many tokens: at each multiple of the interval that has a token
    of the text, not just `</s>`, behind it."""
    if interval is None:
        return np.empty(0, np.int64)
    n = (length - 3) // (interval - 1)  # of the interval - 1 places behind each <s>, all but the text's last are full
    n_fitting = (max_length - 3) // interval
    return interval * np.arange(1, 1 + max(0, min(n, n_fitting)))


def _common_run(ids: np.ndarray, prefix_ids: np.ndarray) -> int:
    """How many tokens are only the prefix's: all, unless its end grew together with the text."""
    n = min(len(ids), len(prefix_ids))
    differing = np.flatnonzero(ids[:n] != prefix_ids[:n])
    return int(differing[0]) if len(differing) else n


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 joins surrogates that do form a pair; those that do not become U+FFFD.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
