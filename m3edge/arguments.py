"""Checks of arguments that several modules make."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import SupportsIndex


def checked_integer(name: str, value: SupportsIndex, *, least: int = 1, most: int | None = None) -> int:
    """An argument that must be an integer, Python's or NumPy's, as an int. Raises TypeError or ValueError naming it."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")
    return number


def checked_texts(name: str, texts: str | Iterable[str]) -> list[str]:
    """One text or several as a list. Raises TypeError, naming the argument, for anything else."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be strings, got {type(texts).__name__}")
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] must be a string, got {type(text).__name__}")
    return texts
