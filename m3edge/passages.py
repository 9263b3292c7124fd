"""Cuts a text that is longer than the model reads into passages, at paragraph boundaries where there are any."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from m3edge.encoder import Encoder

PLACE = "_passage"  # in the metadata of a passage: which document and file it is of, and where in it it stands

# Where a text may be cut, best place first: after a blank line, a line, a sentence (the CJK full stops too), a word.
_BOUNDARIES = (
    re.compile(r"\n\s*\n"),
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])"),
    re.compile(r"\s+"),
)


def place_of(id_: str, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `m3edge index` noted of a passage: `document`, the id of its document, and where in it and in which file it
    stands. Of what it did not add only the document, which is the passage itself."""
    noted = metadata.get(PLACE)
    return {"document": id_, **(noted if isinstance(noted, Mapping) else {})}


class Passage(NamedTuple):
    """A part of a text: text[start:end], counted in characters."""

    start: int
    end: int


def split_passages(text: str, encoder: Encoder, max_length: int | None = None) -> list[Passage]:
    """The passages of a text, in order; one passage when the text fits.

    max_length: tokens of a passage, the model's prefix and special tokens included; by default, and at most, the
        model's limit
    A passage takes whole paragraphs as long as they fit; a paragraph that is too long alone is cut at a line, else at
    the end of a sentence, else between words, else between tokens. White space around a passage is left out.
    """
    info = encoder.info
    limit = info.max_length if max_length is None else max_length
    if limit > info.max_length:
        raise ValueError(f"max_length must be at most what the model reads, {info.max_length} tokens, got {limit}")
    room = limit - 2 - _prefix_tokens(encoder)
    if room < 1:
        raise ValueError(f"max_length must leave room for the prefix and one token, got {limit}")
    spans = encoder.tokenizer.spans(text)
    if len(spans) <= room:
        return [Passage(0, len(text))]
    cuts = [_cut_points(text, boundary) for boundary in _BOUNDARIES]
    passages = []
    start = end = 0
    while end < len(text):
        start, end = end, _end_of_passage(text, end, room, spans, cuts, encoder)
        stripped = text[start:end].strip()
        if stripped:
            offset = text.index(stripped, start)
            passages.append(Passage(offset, offset + len(stripped)))
    return passages


def _end_of_passage(
    text: str, start: int, room: int, spans: np.ndarray, cuts: list[np.ndarray], encoder: Encoder
) -> int:
    """Where the passage that begins at `start` ends: as many tokens as there is room for, or a better place before."""
    first = int(np.searchsorted(spans[:, 1], start, side="right"))  # its first token, which may have begun before it
    for n_tokens in range(room, 0, -1):
        if first + n_tokens >= len(spans):
            end = len(text)
        else:
            begin = max(start, int(spans[first, 0]))
            end = max(begin + 1, _best_cut(cuts, begin, limit_at=int(spans[first + n_tokens, 0])))
        # Alone, a passage that begins within a word has a token more: its own first one.
        if len(encoder.tokenizer.spans(text[start:end].strip())) <= room:
            break
    return end


def _prefix_tokens(encoder: Encoder) -> int:
    info = encoder.info
    (prefixed,) = encoder.tokenizer.tokenize([""], prefix=info.passage_prefix, max_length=info.max_length)
    return len(prefixed.ids) - 2


def _cut_points(text: str, boundary: re.Pattern[str]) -> np.ndarray:
    return np.array([match.end() for match in boundary.finditer(text)], np.int64)


def _best_cut(cuts: list[np.ndarray], start: int, limit_at: int) -> int:
    """The last cut of the best kind within (start, limit_at]; limit_at itself, between two tokens, when there is none.

    A cut in the passage's first half is passed over for a finer kind: it would leave passages half empty.
    """
    for points in cuts:
        position = int(np.searchsorted(points, limit_at, side="right"))
        if position and points[position - 1] > start + (limit_at - start) // 2:
            return int(points[position - 1])
    return limit_at
