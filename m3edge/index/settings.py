"""What an index was created with, as its store keeps it: which values have a meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3edge.index.dense import MODES
from m3edge.index.graph import HnswConfig
from m3edge.index.tokens import CODECS

MODEL_KEYS = ("name", "fingerprint", "precision", "dense_dim", "token_dim")
TOKEN_POOLING = (1, 2, 3)


def problem_of_settings(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with the settings of a store, or None. Those that older stores lack may be missing."""
    model, hnsw = settings.get("model"), settings.get("hnsw")
    if not (isinstance(model, dict) and model.keys() >= set(MODEL_KEYS)):
        return f"'model' must have {', '.join(MODEL_KEYS)}"
    if not all(isinstance(model[key], str) for key in ("name", "fingerprint", "precision")):
        return "'model' must have a name, a fingerprint and a precision that are texts"
    if not all(_is_count(model[key]) for key in ("dense_dim", "token_dim")):
        return "'model' must have a dense_dim and a token_dim of at least 1"
    if not (isinstance(hnsw, dict) and all(_is_count(value) for value in hnsw.values())):
        return "'hnsw' must be numbers of at least 1"
    try:
        HnswConfig(**hnsw)
    except (TypeError, ValueError) as error:
        return f"'hnsw': {error}"
    for key, known in (("dense", MODES), ("token_codec", CODECS), ("token_pooling", TOKEN_POOLING)):
        if key in settings and (isinstance(settings[key], bool) or settings[key] not in known):
            return f"{key!r} must be one of {', '.join(map(str, known))}"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
