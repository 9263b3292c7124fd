"""A checkpoint's tokenizer.json: reading it, whether it suits the encoder, which of its tokens stand for no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from m3edge.errors import FormatError


class SpecialIds(NamedTuple):
    """Ids of the tokens that stand for no text; `dropped` are left out of sparse vectors, as in FlagEmbedding."""

    cls: int
    eos: int
    pad: int
    dropped: tuple[int, ...]


def read_tokenizer(path: Path) -> Tokenizer:
    """tokenizer.json, neither cutting nor padding."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises this very class and no other
        raise FormatError(f"{path}: not a tokenizer ({error}); download the checkpoint again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_tokenizer(path: Path, n_embeddings: int) -> None:
    """Whatever the text, a tokenizer must give ids that the encoder has an embedding for."""
    token, largest = max(read_tokenizer(path).get_vocab().items(), key=lambda item: item[1])
    if largest >= n_embeddings:
        raise FormatError(
            f"{path}: the id of {token!r} is {largest}, but the encoder has {n_embeddings} embeddings; the tokenizer "
            "belongs to another encoder"
        )
    unit_model = json.loads(path.read_bytes())["model"]
    if unit_model["type"] == "Unigram" and unit_model.get("unk_id") is None:
        # tokenizers would raise an error of its own, and only at the first text that needs it
        raise FormatError(f"{path}: has no token for unknown characters (unk_id); a Unigram tokenizer needs one")


def special_ids(path: Path, pad: int | None) -> SpecialIds:
    """The tokenizer's `<s>`, `</s>`, `<pad>` and `<unk>`, whatever it calls them ([CLS], [SEP] and so on in BERT).

    pad: the id that the encoder's configuration gives padding
    """
    empty = read_tokenizer(path).encode("").ids
    if len(empty) != 2 or pad is None:
        raise FormatError(f"{path}: does not put one token before and one after a text, as BERT and XLM-RoBERTa do")
    unit_model = json.loads(path.read_bytes())["model"]
    unknown = unit_model.get("unk_id")
    if unknown is None:
        unknown = unit_model.get("vocab", {}).get(unit_model.get("unk_token"))
    dropped = {token for token in (*empty, pad, unknown) if token is not None}
    return SpecialIds(empty[0], empty[1], pad, tuple(sorted(dropped)))
