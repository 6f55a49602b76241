"""Bearer tokens (RFC 6750) of devices: making one, reading one from a request, hashing one.

A token is 256 random bits, so its plain SHA-256 is enough to store: there is nothing to guess and
no need for a slow hash. Only the hash is kept. Tokens are hexadecimal, since base64 makes one in 64
look like an option on a command line.
"""

from __future__ import annotations

import hashlib
import re
import secrets

TOKEN_BYTES = 32
_TOKEN = re.compile(r"[0-9a-f]{64}")


def new_token() -> str:
    """A fresh token: 64 characters."""
    return secrets.token_hex(TOKEN_BYTES)


def token_hash(token: str) -> bytes:
    """What the registry keeps of `token`: 32 bytes."""
    return hashlib.sha256(token.encode()).digest()


def bearer_token(authorization: str | None) -> str | None:
    """The token of an `Authorization` field (RFC 6750 section 2.1); None if it cannot be ours."""
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip(" ")
    # The scheme is case-insensitive (RFC 9110 section 11.1).
    return token if scheme.lower() == "bearer" and _TOKEN.fullmatch(token) else None
