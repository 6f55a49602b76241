"""How a client decides that it talks to its gateway.

Either a pin on the certificate's public key (RFC 7469 section 2.4: base64 of SHA-256 over the
SubjectPublicKeyInfo), which also makes a self-signed certificate trustworthy, or a public or
private certification authority and the host name.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import, and profiles are read by commands that check no certificate
    from cryptography import x509

PIN_PREFIX = "sha256/"
#: The response field in which a gateway announces its pins, the next one included, to a device.
PINS_FIELD = "public-key-pins"
MAX_PINS = 4
_PINS_SECONDS = 365 * 86400  # the field must have an age; profiles keep pins until told others
_PIN_DIRECTIVE = re.compile(r'pin-sha256="([A-Za-z0-9+/]{43}=)"')


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


def format_pins(pins: Iterable[str]) -> str:
    """The value of a Public-Key-Pins field (RFC 7469 section 2.1)."""
    directives = [f'pin-sha256="{pin.removeprefix(PIN_PREFIX)}"' for pin in pins]
    return "; ".join([*directives, f"max-age={_PINS_SECONDS}"])


def announced_pins(field: str | None, trust: Trust) -> tuple[str, ...] | None:
    """The pins to hold from now on, by the field of a gateway that `trust` accepted.

    None to keep those there are: without pins nothing is announced, and an announcement must
    contain one of them (RFC 7469 section 2.5).
    """
    pins: tuple[str, ...] = ()
    with suppress(ValueError):
        digests = _PIN_DIRECTIVE.findall(field or "")[:MAX_PINS]
        pins = tuple(dict.fromkeys(map(parse_pin, digests)))
    return pins if set(pins) & set(trust.pins) else None


def parse_pin(text: str) -> str:
    """Check a pin and return it in canonical form. Raises ValueError."""
    body = text.strip().removeprefix(PIN_PREFIX)
    digest = base64.b64decode(body, validate=True)
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("a pin is 32 bytes in base64")
    return PIN_PREFIX + base64.b64encode(digest).decode()
