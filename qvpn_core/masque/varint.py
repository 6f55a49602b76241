"""Variable-length integers (RFC 9000 section 16): the one number format of capsules and datagrams.

Encodes in the fewest bytes; decodes any of the four lengths, as RFC 9297 section 1.1 allows. Knows
nothing of what the numbers mean.
"""

from __future__ import annotations

#: The largest value that a variable-length integer holds.
MAX_VARINT = (1 << 62) - 1

# By length in bytes: the two bits that announce the length, and the mask of the value without them.
_PREFIX = {1: 0, 2: 1 << 14, 4: 2 << 30, 8: 3 << 62}
_MASK = {1: 0x3F, 2: 0x3FFF, 4: 0x3FFF_FFFF, 8: MAX_VARINT}


def encode_varint(value: int) -> bytes:
    """`value` in the fewest of 1, 2, 4 or 8 bytes.

    Raises ValueError when it is negative or above `MAX_VARINT`.
    """
    if 0 <= value < 0x40:
        return value.to_bytes(1, "big")
    for length, mask in _MASK.items():
        if 0 <= value <= mask:
            return (_PREFIX[length] | value).to_bytes(length, "big")
    raise ValueError(f"{value} does not fit a variable-length integer")


def decode_varint(data: bytes, offset: int = 0) -> tuple[int, int] | None:
    """The value at `offset` and the offset behind it, or None when more bytes are needed."""
    if offset >= len(data):
        return None
    first = data[offset]
    length = 1 << (first >> 6)
    end = offset + length
    if length == 1:
        return first, end
    if end > len(data):
        return None
    return int.from_bytes(data[offset:end], "big") & _MASK[length], end
