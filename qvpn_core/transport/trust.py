"""How a client decides that it talks to its gateway.

Either a pin on the certificate's public key (RFC 7469 section 2.4: base64 of SHA-256 over the
SubjectPublicKeyInfo), which also makes a self-signed certificate trustworthy, or a public or
private certification authority and the host name.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import, and profiles are read by commands that check no certificate
    from cryptography import x509

PIN_PREFIX = "sha256/"


@dataclass(frozen=True, slots=True)
class Trust:
    """What a gateway's certificate must satisfy: one of `pins`, or the authorities.

    `pins` are ``sha256/BASE64`` strings; several allow for rotation. With no pins, the chain is
    verified against `ca_file` (PEM) or, when that is None, the system's authorities.
    """

    pins: tuple[str, ...] = ()
    ca_file: str | None = None

    def accepts(self, certificate: x509.Certificate) -> bool:
        """Whether `certificate` carries a pinned key. Meaningless without pins."""
        return spki_pin(certificate) in self.pins


def spki_pin(certificate: x509.Certificate) -> str:
    """The pin of a certificate's public key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PIN_PREFIX + base64.b64encode(hashlib.sha256(spki).digest()).decode()


def parse_pin(text: str) -> str:
    """Check a pin and return it in canonical form. Raises ValueError."""
    body = text.strip().removeprefix(PIN_PREFIX)
    digest = base64.b64decode(body, validate=True)
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("a pin is 32 bytes in base64")
    return PIN_PREFIX + base64.b64encode(digest).decode()
