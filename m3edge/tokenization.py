"""Texts to token ids, with the model folder's tokenizer.json: prefixes and truncation, nothing of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class TokenizedText(NamedTuple):
    """One text as the model reads it.

    ids:       int64 [n], `<s>` prefix … text … `</s>`
    n_prefix:  how many of them, after `<s>`, belong to the prefix
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
    """The model's tokenizer. Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer  # late: `import m3edge` stays light

        self._tokenizer = HuggingFaceTokenizer.from_file(str(path))
        # Length is ours to cut and pad: what the file says about it would change results from call to call.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokenize(
        self, texts: Sequence[str], *, prefix: str, max_length: int, mcls_interval: int | None = None
    ) -> list[TokenizedText]:
        """Each text with `prefix` before it, cut at `max_length` tokens with its last token, `</s>`, kept.

        mcls_interval: put a further `<s>` before every so many tokens; they count towards max_length
        A lone surrogate, which no UTF-8 text can hold, counts as U+FFFD.
        """
        prefix_ids = self._ids([prefix])[0][1:-1] if prefix else np.empty(0, np.int64)
        result = []
        for ids in self._ids([prefix + text for text in texts]):
            further_cls = _further_cls(len(ids), mcls_interval, max_length)
            room = max_length - len(further_cls)
            truncated = len(ids) > room
            if truncated:
                ids = np.concatenate([ids[: room - 1], ids[-1:]])
            n_prefix = min(len(prefix_ids), len(ids) - 2)
            if not np.array_equal(ids[1 : 1 + n_prefix], prefix_ids[:n_prefix]):
                n_prefix = 0  # the prefix's end grew together with the text: no token is only the prefix's
            ids = np.insert(ids, further_cls - np.arange(len(further_cls)), ids[0])
            result.append(TokenizedText(ids, n_prefix, truncated, further_cls))
        return result

    def token(self, token_id: int) -> str:
        """The vocabulary's spelling of a token, "▁file" for example."""
        return self._tokenizer.id_to_token(int(token_id)) or f"<{int(token_id)}>"

    def spans(self, text: str) -> np.ndarray:
        """Where each token of a text lies in it: int64 [n, 2], start and end in characters, no special tokens."""
        encoding = self._tokenizer.encode(_encodable(text), add_special_tokens=False)
        return np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def _ids(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast([_encodable(text) for text in texts])
        return [np.array(encoding.ids, np.int64) for encoding in encodings]


def _further_cls(length: int, interval: int | None, max_length: int) -> np.ndarray:
    """Where further `<s>` come to stand in a text of so many tokens: at each multiple of the interval that has a token
    of the text, not just `</s>`, behind it."""
    if interval is None:
        return np.empty(0, np.int64)
    n = (length - 3) // (interval - 1)  # of the interval - 1 places behind each <s>, all but the text's last are full
    n_fitting = (max_length - 3) // interval
    return interval * np.arange(1, 1 + max(0, min(n, n_fitting)))


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 joins surrogates that do form a pair; those that do not become U+FFFD.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
