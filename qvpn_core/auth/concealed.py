"""Concealed HTTP authentication (RFC 9729) with Ed25519, both sides.

The client signs an exporter value of the connection; the gateway checks it without ever having
asked, so that nobody without a key learns that there is anything to ask for. Every request costs
the gateway the same, whether it carries a good credential, a bad one or none. It refuses to say why
a credential was not accepted, to tell devices from invites, and to know what either may do.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from qvpn_core.auth.device_key import DeviceKey, key_id
from qvpn_core.auth.exporter import Exporter
from qvpn_core.auth.http_field import parse_credentials, quote
from qvpn_core.masque.varint import encode_varint

SCHEME = "Concealed"
EXPORTER_LABEL = b"EXPORTER-HTTP-Concealed-Authentication"
EXPORTER_BYTES = 48
ED25519 = 0x0807  # in TLS's registry of signature schemes (RFC 8446 section 4.2.3)

#: Given a key ID, the public key enrolled under it, or None.
KeyLookup = Callable[[bytes], bytes | None]

_SIGNATURE_INPUT_BYTES = 32  # of the exporter's output; the rest is the verification
_SIGNED_PREFIX = b" " * 64 + b"HTTP Concealed Authentication\0"
_INTEGER = re.compile(r"0|[1-9][0-9]{0,4}")
_DEFAULT_PORTS = {"https": 443, "http": 80}
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_PORT = 0xFFFF
_SIGNATURE_BYTES = 64
# The order of Ed25519's base point (RFC 8032 section 5.1).
_ORDER = 2**252 + 27742317777372353535851937790883648493


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port as they enter the exporter's context (RFC 9729 section 3.1)."""

    scheme: str
    #: As in a URI: an IPv6 address has its brackets (RFC 3986 section 3.2.2).
    host: str
    port: int

    @classmethod
    def of(cls, scheme: str, authority: str) -> Self:
        """The origin of a request with these pseudo-header fields.

        Nothing is normalised, since both sides see the same characters; and whatever a peer sends
        is an origin, if only one that nobody signs for.
        """
        host, colon, port = authority.rpartition(":")
        default = _DEFAULT_PORTS.get(scheme, 0)
        if colon and not port:
            return cls(scheme, host, default)
        if colon and _PORT.fullmatch(port) and int(port) <= _MAX_PORT:
            return cls(scheme, host, int(port))
        return cls(scheme, authority, default)


@dataclass(frozen=True, slots=True)
class ConcealedCredentials:
    """The parameters of a well-formed field (RFC 9729 section 4), nothing checked."""

    key_id: bytes
    public_key: bytes
    proof: bytes
    signature_scheme: int
    verification: bytes
    realm: str = ""

    def __str__(self) -> str:
        """The value of the Authorization field."""
        parameters = [
            f"k={_encode(self.key_id)}",
            f"a={_encode(self.public_key)}",
            f"p={_encode(self.proof)}",
            f"s={self.signature_scheme}",
            f"v={_encode(self.verification)}",
        ]
        if self.realm:
            parameters.append(f"realm={quote(self.realm)}")
        return f"{SCHEME} {', '.join(parameters)}"

    @classmethod
    def parse(cls, field: str | None) -> Self | None:
        """Read an Authorization field; None unless it is one of this scheme, whole and well formed.

        Parameters come in any order, each once; unknown ones are ignored, which RFC 9110 section
        16.4.2 prefers and RFC 9729 does not rule out.
        """
        credentials = parse_credentials(field or "")
        if credentials is None or credentials.scheme.lower() != SCHEME.lower():
            return None
        parameters, quoted = credentials.parameters, credentials.quoted
        realm = parameters.get("realm", quoted.get("realm", ""))
        try:
            key_id, public_key, proof, verification = (
                _decode(parameters[name]) for name in ("k", "a", "p", "v")
            )
            signature_scheme = _integer(parameters["s"])
        except (KeyError, ValueError):
            return None
        return cls(key_id, public_key, proof, signature_scheme, verification, realm)


def authenticate(key: DeviceKey, exporter: Exporter, origin: Origin, realm: str = "") -> str:
    """The Authorization field that proves possession of `key` on the exporter's connection.

    One value serves all requests of a connection to one origin (RFC 9729 section 8). `realm` is
    printable ASCII; ValueError otherwise.
    """
    context = _exporter_context(ED25519, key.key_id, key.public_key, origin, realm)
    output = exporter(EXPORTER_LABEL, context, EXPORTER_BYTES)
    return str(_sign(key, output, realm))


def credential_field(method: str, protocol: str | None) -> str:
    """The name of the field that a request's credential is in.

    CONNECT addresses a proxy, whatever its authority says (RFC 9110 section 11.7.1); extended
    CONNECT addresses a resource like other methods do.
    """
    proxied = method == "CONNECT" and protocol is None
    return "proxy-authorization" if proxied else "authorization"


class Verifier:
    """The gateway's side: which enrolled key, if any, a request was authenticated with."""

    def __init__(self, lookup: KeyLookup) -> None:
        self._lookup = lookup
        # What is verified in place of a credential that cannot be good.
        self._nobody = _sign(DeviceKey.generate(), bytes(EXPORTER_BYTES), "")

    def verify(self, field: str | None, exporter: Exporter, origin: Origin) -> bytes | None:
        """The key ID that `field`, the request's Authorization or None, proves; else None.

        The checks are those of RFC 9729 section 6.3. Whatever `field` is, it takes one look-up, one
        exporter value and one verification of a signature, so that time tells nothing of the
        outcome to who does not know an enrolled public key (section 6.4). The key can be an
        invite's: the caller must know which of its keys may do what.
        """
        claimed = ConcealedCredentials.parse(field) or self._nobody
        public_key = self._lookup(claimed.key_id)
        output = _export(claimed, exporter, origin)
        plausible = _plausible(claimed, public_key or self._nobody.public_key, output)
        genuine = plausible and public_key is not None
        subject = claimed if genuine else self._nobody
        return claimed.key_id if _signature_valid(subject, output) and genuine else None


def verify_self(field: str, exporter: Exporter, origin: Origin) -> bytes | None:
    """The public key that `field` proves possession of, enrolled or not; None if it proves none.

    Its key ID must be the one of `device_key.key_id`.
    """
    claimed = ConcealedCredentials.parse(field)
    if claimed is None or claimed.key_id != key_id(claimed.public_key):
        return None
    output = _export(claimed, exporter, origin)
    if _plausible(claimed, claimed.public_key, output) and _signature_valid(claimed, output):
        return claimed.public_key
    return None


def _sign(key: DeviceKey, output: bytes, realm: str) -> ConcealedCredentials:
    return ConcealedCredentials(
        key_id=key.key_id,
        public_key=key.public_key,
        proof=key.sign(_SIGNED_PREFIX + output[:_SIGNATURE_INPUT_BYTES]),
        signature_scheme=ED25519,
        verification=output[_SIGNATURE_INPUT_BYTES:],
        realm=realm,
    )


def _export(claimed: ConcealedCredentials, exporter: Exporter, origin: Origin) -> bytes:
    context = _exporter_context(
        claimed.signature_scheme, claimed.key_id, claimed.public_key, origin, claimed.realm
    )
    return exporter(EXPORTER_LABEL, context, EXPORTER_BYTES)


def _exporter_context(
    signature_scheme: int, identifier: bytes, public_key: bytes, origin: Origin, realm: str
) -> bytes:
    """The key exporter context (RFC 9729 section 3.1)."""
    return b"".join(
        (
            signature_scheme.to_bytes(2, "big"),
            _prefixed(identifier),
            _prefixed(public_key),
            _prefixed(origin.scheme.encode()),
            _prefixed(origin.host.encode()),
            origin.port.to_bytes(2, "big"),
            _prefixed(realm.encode()),
        )
    )


def _plausible(claimed: ConcealedCredentials, public_key: bytes, output: bytes) -> bool:
    """All checks but the signature's. Every one is made, whatever the others say."""
    scalar = int.from_bytes(claimed.proof[_SIGNATURE_BYTES // 2 :], "little")
    return all(
        (
            claimed.signature_scheme == ED25519,
            hmac.compare_digest(claimed.public_key, public_key),
            hmac.compare_digest(claimed.verification, output[_SIGNATURE_INPUT_BYTES:]),
            # What verification would refuse at once, and so sooner (RFC 8032 section 5.1.7).
            len(claimed.proof) == _SIGNATURE_BYTES and scalar < _ORDER,
        )
    )


def _signature_valid(claimed: ConcealedCredentials, output: bytes) -> bool:
    signed = _SIGNED_PREFIX + output[:_SIGNATURE_INPUT_BYTES]
    try:
        Ed25519PublicKey.from_public_bytes(claimed.public_key).verify(claimed.proof, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _prefixed(data: bytes) -> bytes:
    return encode_varint(len(data)) + data


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    """Bytes from base64url in its one canonical form, unpadded. Raises ValueError."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _encode(data) != text:
        raise ValueError("padding, bits behind the last byte, or not of the alphabet")
    return data


def _integer(text: str) -> int:
    """A number below 2^16 without leading zeros. Raises ValueError."""
    value = int(text) if _INTEGER.fullmatch(text) else -1
    if not 0 <= value <= 0xFFFF:
        raise ValueError("not a signature scheme")
    return value
