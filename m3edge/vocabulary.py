"""A Unigram tokenizer's vocabulary in a form that is mapped, not parsed.

Hugging Face's tokenizers takes most of a second, and a hundred megabytes, to make its tables from BGE-M3's 250,002
tokens; a file of this form is there in milliseconds. It holds the vocabulary alone: normalising a text and splitting
it into words stay with Hugging Face's tokenizers, whose settings it carries.

    magic        8 bytes
    length       uint64 of the description
    description  JSON: see Vocabulary
    scores       float64 [n_tokens]
    first        uint32 [n_nodes + 1]
    ids          int32 [n_nodes]
    labels       uint8 [n_nodes]

All numbers are little-endian; the description ends with spaces so that the arrays start at a multiple of 8 bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3edge.errors import FormatError

_MAGIC = b"m3vocab\x01"
_DTYPES = {"scores": "<f8", "first": "<u4", "ids": "<i4", "labels": "u1"}


class Vocabulary(NamedTuple):
    """What the file holds.

    settings:   tokenizer.json with a vocabulary of one token: how texts are normalised and split into words
    special:    the strings that may stand for a token of their own wherever they occur in a text, normalised or not,
                "<s>" for example
    before, after: the ids that every text gets at its ends
    unknown_id: the token of what no other covers
    scores:     float64 [n_tokens], log probabilities
    first:      uint32 [n_nodes + 1], node i's children are the nodes first[i]:first[i + 1]; node 0 is the root
    ids:        int32 [n_nodes], the token that ends at a node, or -1
    labels:     uint8 [n_nodes], the byte that leads to a node; those of one node's children ascend
    """

    settings: dict[str, Any]
    special: list[str]
    before: list[int]
    after: list[int]
    unknown_id: int
    scores: np.ndarray
    first: np.ndarray
    ids: np.ndarray
    labels: np.ndarray


def read_vocabulary(path: Path) -> Vocabulary:
    """Map a file; FormatError when it is not of this form, or not whole."""
    wrong = FormatError(f"{path}: not a vocabulary that this m3edge reads; export the model again")
    with path.open("rb") as file:
        head = file.read(16)
        length = int.from_bytes(head[8:], "little")
        if head[:8] != _MAGIC or length > path.stat().st_size:
            raise wrong
        try:
            description = json.loads(file.read(length))
            n_tokens, n_nodes = description.pop("n_tokens"), description.pop("n_nodes")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise wrong from error
    if not all(type(size) is int and 0 < size < 2**31 for size in (n_tokens, n_nodes)) or not _is_sound(description):
        raise wrong
    shapes = {"scores": n_tokens, "first": n_nodes + 1, "ids": n_nodes, "labels": n_nodes}
    ends = np.cumsum([size * np.dtype(_DTYPES[name]).itemsize for name, size in shapes.items()])
    if path.stat().st_size != 16 + length + ends[-1]:
        raise wrong
    content = np.asarray(np.memmap(path, np.uint8, "r", offset=16 + length))
    arrays: dict[str, Any] = {
        name: part.view(_DTYPES[name]) for name, part in zip(shapes, np.split(content, ends[:-1]), strict=True)
    }
    return Vocabulary(**description, **arrays)


def write_vocabulary(path: Path, tokenizer: Any) -> bool:
    """Write the vocabulary of a tokenizer of Hugging Face's, unless it is of another kind than this form can hold.

    returns whether it was written
    """
    settings = json.loads(tokenizer.to_str())
    model = settings["model"]
    fits = model["type"] == "Unigram" and model["unk_id"] is not None and not model.get("byte_fallback")
    if not fits:
        return False
    vocabulary: list[tuple[str, float]] = model["vocab"]
    arrays = {"scores": np.array([score for _, score in vocabulary]), **_trie([token for token, _ in vocabulary])}
    settings["model"] = {**model, "vocab": [["<unk>", 0.0]], "unk_id": 0}
    special = [token["content"] for token in settings["added_tokens"]]
    if tokenizer.normalizer is not None:
        special += [
            tokenizer.normalizer.normalize_str(token["content"])
            for token in settings["added_tokens"]
            if token["normalized"]
        ]
    encoding = tokenizer.encode("")
    ends = len(encoding.ids) - len(tokenizer.encode("", add_special_tokens=False).ids)
    n_before = _n_before(tokenizer, ends)
    description = {
        "settings": {**settings, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None},
        "special": special,
        "before": encoding.ids[:n_before],
        "after": encoding.ids[n_before:],
        "unknown_id": model["unk_id"],
        "n_tokens": len(vocabulary),
        "n_nodes": len(arrays["labels"]),
    }
    text = json.dumps(description, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
        for name, dtype in _DTYPES.items():
            file.write(np.ascontiguousarray(arrays[name], dtype).tobytes())
    return True


def _is_sound(description: dict[str, Any]) -> bool:
    """Whether a description holds what a Vocabulary needs beside its arrays, each of the right type."""
    types = {"settings": dict, "special": list, "before": list, "after": list, "unknown_id": int}
    if {name: type(value) for name, value in description.items()} != types:
        return False
    ids = [*description["before"], *description["after"], description["unknown_id"]]
    return all(type(text) is str for text in description["special"]) and all(
        type(number) is int and 0 <= number < 2**31 for number in ids
    )


def _n_before(tokenizer: Any, n_ends: int) -> int:
    """How many of the ids that a text gets at its ends stand before it."""
    return next((i for i, own in enumerate(tokenizer.encode("a").special_tokens_mask) if not own), n_ends)


def _trie(tokens: list[str]) -> dict[str, np.ndarray]:
    """first, ids and labels, level by level: a node's children stand together. Of equal tokens the last one counts."""
    places = {token.encode(): i for i, token in enumerate(tokens)}
    spelled = sorted(places)
    lengths = np.array([len(token) for token in spelled])
    longest = int(lengths.max())
    letters = np.frombuffer(b"".join(token.ljust(longest, b"\0") for token in spelled), np.uint8).reshape(-1, longest)
    differs = np.ones((len(spelled), longest + 1), bool)
    differs[1:, :-1] = letters[1:] != letters[:-1]
    shared = np.minimum(differs.argmax(axis=1), np.append(0, lengths[:-1]))  # letters, with the token before
    shared[0] = 0
    token_ids = np.array([places[token] for token in spelled])
    above = np.zeros(len(spelled), np.int64)  # the node that each token's first letters have led to
    parents, labels, ids = [], [np.zeros(1, np.uint8)], [np.full(1, -1)]
    n_nodes = 1
    for level in range(1, longest + 1):
        starts = (lengths >= level) & (shared < level)
        parents.append(above[starts])
        labels.append(letters[starts, level - 1])
        ids.append(np.where(lengths[starts] == level, token_ids[starts], -1))
        above = n_nodes - 1 + np.cumsum(starts)
        n_nodes += int(starts.sum())
    children = np.bincount(np.concatenate(parents), minlength=n_nodes)
    first = np.append(1, 1 + np.cumsum(children))
    return {"first": first, "ids": np.concatenate(ids), "labels": np.concatenate(labels)}
