"""CRC-32, as zlib computes it (see _kernels_numpy.py)."""

from __future__ import annotations

import struct
import zlib
from zlib import crc32 as crc32


def crc32_of_row(row: int, *parts: str | bytes) -> int:
    """CRC-32 of a row of a table: its number and its parts' lengths in bytes, as int64, little-endian, then the parts.

    The lengths count, too, so that nothing can move from one part to the next. Text is taken as UTF-8: raises
    UnicodeEncodeError for what is no Unicode.
    """
    encoded = [part if isinstance(part, bytes) else part.encode() for part in parts]
    return zlib.crc32(b"".join([struct.pack(f"<{len(parts) + 1}q", row, *map(len, encoded)), *encoded]))
