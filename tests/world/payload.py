"""The deterministic bytes that downloads consist of: one pseudo-random block, repeated."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final

BLOCK_SIZE: Final = 1 << 20


@cache
def block() -> bytes:
    """The repeated block: BLOCK_SIZE bytes that do not compress."""
    return hashlib.shake_128(b"the test world").digest(BLOCK_SIZE)


@cache
def payload_sha256(size: int) -> str:
    """The SHA-256 in hex of the first `size` bytes of the endless payload."""
    digest = hashlib.sha256()
    for _ in range(size // BLOCK_SIZE):
        digest.update(block())
    digest.update(block()[: size % BLOCK_SIZE])
    return digest.hexdigest()
