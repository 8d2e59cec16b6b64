"""Several strings in one input: two bytes of length, then the string, again and again."""

from __future__ import annotations

from collections.abc import Iterable

_LENGTH_BYTES = 2


def join(pieces: Iterable[bytes]) -> bytes:
    """Raises OverflowError for a piece of more than 65535 bytes."""
    return b"".join(len(piece).to_bytes(_LENGTH_BYTES, "little") + piece for piece in pieces)


def split(data: bytes) -> list[bytes]:
    """Of any bytes: the last piece may be shorter than it says."""
    pieces = []
    while data:
        length, data = int.from_bytes(data[:_LENGTH_BYTES], "little"), data[_LENGTH_BYTES:]
        pieces.append(data[:length])
        data = data[length:]
    return pieces
