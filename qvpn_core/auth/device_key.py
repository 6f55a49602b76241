"""Ed25519 keys (RFC 8032) that identify a device, or an invite for the one request it is good for.

A key signs for RFC 9729 and, as section 8 there demands, for nothing else. It never shows its
private half in a repr; where the PEM is stored, and who may read it there, is the storage's matter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from qvpn_core.errors import UsageError

PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A key pair. Equal to another when the public halves are."""

    #: 32 bytes, encoded as in RFC 8032 section 5.1.2.
    public_key: bytes
    _private: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> Self:
        """A fresh key."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The key that follows from 32 secret bytes (RFC 8032 section 5.1.5)."""
        return cls._of(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read what `to_pem` wrote. Raises UsageError for anything else."""
        try:
            private = load_pem_private_key(pem, password=None)
        # InternalError: a key of another kind and the wrong length.
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise UsageError("the stored device key is damaged", "enrol this device again")
        return cls._of(private)

    @classmethod
    def _of(cls, private: Ed25519PrivateKey) -> Self:
        return cls(private.public_key().public_bytes_raw(), private)

    def to_pem(self) -> bytes:
        """The private key, unencrypted: PKCS #8 in PEM (RFC 5958, RFC 8410)."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def key_id(self) -> bytes:
        """What this key is looked up by."""
        return key_id(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """The signature over `message`: 64 bytes."""
        return self._private.sign(message)


def key_id(public_key: bytes) -> bytes:
    """The key ID (RFC 9729 section 4.1) of a public key: its SHA-256, 32 bytes.

    RFC 9729 leaves the choice open. A hash needs no counter or name that could be guessed: whoever
    does not know an enrolled public key cannot ask for it.
    """
    return hashlib.sha256(public_key).digest()
