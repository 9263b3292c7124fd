"""What a checkpoint's weights do not say, in m3edge_model.json: pooling, prefixes, longest text, presets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from transformers import PretrainedConfig

from m3edge.errors import FormatError
from m3edge.model_folder import POOLINGS, PRESETS
from m3edge.scoring import resolve_weights

# Encoders whose first position id is pad_token_id + 1, so that many of their positions are never used.
_OFFSET_POSITIONS = ("xlm-roberta", "xlm-roberta-xl", "roberta", "camembert", "mpnet")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What a checkpoint's weights do not say; the defaults are BGE-M3's."""

    name: str = ""  # for people; empty: the source's name
    pooling: str = "cls"
    query_prefix: str = ""
    passage_prefix: str = ""
    max_length: int = 0  # tokens, special tokens and prefix included; 0: as many as the encoder has positions for
    presets: dict[str, tuple[float, float, float]] = field(default_factory=lambda: dict(PRESETS))

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}")
        for name in ("name", "query_prefix", "passage_prefix"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string, got {getattr(self, name)!r}")
        if not isinstance(self.max_length, int) or isinstance(self.max_length, bool):
            raise TypeError(f"max_length must be an integer, got {self.max_length!r}")
        if self.max_length < 0 or 0 < self.max_length < 3:
            raise ValueError(f"max_length must be 0, or leave room for <s>, one token and </s>, got {self.max_length}")
        for name, weights in self.presets.items():
            try:
                resolve_weights(weights)
            except (TypeError, ValueError) as error:
                raise ValueError(f"preset {name!r}: {error}") from error


def read_settings(path: Path) -> ModelSettings:
    """What the file says; the defaults where there is none. Raises FormatError for anything else in it."""
    if not path.is_file():
        return ModelSettings()
    try:
        values = json.loads(path.read_bytes())
        if "presets" in values:
            values["presets"] = {name: tuple(weights) for name, weights in values["presets"].items()}
        return ModelSettings(**values)
    except (ValueError, TypeError, AttributeError) as error:
        known = ", ".join(item.name for item in fields(ModelSettings))
        raise FormatError(f"{path}: {error}; it may hold {known}") from error


def complete(settings: ModelSettings, config: PretrainedConfig, path: Path, name: str) -> ModelSettings:
    """The settings with a name and a longest text; `path` is the file they are from, `name` the source's.

    Raises FormatError for more tokens than the encoder has positions for.
    """
    positions = config.max_position_embeddings
    if config.model_type in _OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    if settings.max_length > positions:
        raise FormatError(f"{path}: max_length is {settings.max_length}, but the encoder has {positions} positions")
    short_name = name.split("/")[-1]
    return replace(settings, name=settings.name or short_name, max_length=settings.max_length or positions)
