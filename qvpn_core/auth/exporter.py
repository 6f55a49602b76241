"""TLS 1.3 keying material exporters (RFC 8446 section 7.5), from a secret that the transport holds.

Values that only the two ends of one connection know: what is signed over one of them is worth
nothing on any other connection. Only the arithmetic is here; which secret it is, and when to take
it, is the transport's business.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

#: A connection's exporter: label, context and length in bytes to that many bytes.
Exporter = Callable[[bytes, bytes, int], bytes]


def tls_exporter(
    exporter_master_secret: bytes,
    algorithm: hashes.HashAlgorithm,
    label: bytes,
    context: bytes,
    length: int,
) -> bytes:
    """`length` bytes for `label` and `context`; `algorithm` is the hash of the cipher suite.

    Equal at both ends of a connection. With the first two arguments bound it is an `Exporter`.
    """
    secret = _expand_label(
        algorithm, exporter_master_secret, label, _digest(algorithm, b""), algorithm.digest_size
    )
    return _expand_label(algorithm, secret, b"exporter", _digest(algorithm, context), length)


def _expand_label(
    algorithm: hashes.HashAlgorithm, secret: bytes, label: bytes, context: bytes, length: int
) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1)."""
    label = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(label),)) + label
    info += bytes((len(context),)) + context
    return HKDFExpand(algorithm, length, info).derive(secret)


def _digest(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(data)
    return digest.finalize()
