"""The invite: all that a fresh device needs to enrol, as one `qvpn://` link.

The link is base64url over a binary form that carries its own version, length and checksum, so that
a link which lost characters is told from one that was changed or is too new. The gateway keeps
nothing that could redeem an invite: the single-use secret is the seed of a key pair, the client
authenticates its one request with that key (RFC 9729), and only the public half is stored. Finding
a link in what a person pasted is `invite_text`'s work; whether an invite is still good, the
gateway's.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import NamedTuple, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from qvpn_core.auth.device_key import SEED_BYTES, DeviceKey
from qvpn_core.errors import QvpnError
from qvpn_core.masque.domain import check_hostname

SCHEME = "qvpn://"
SECRET_BYTES = 16
MAX_GATEWAYS = 4
MAX_PINS = 4
PIN_PREFIX = "sha256/"
#: Names of devices, as the gateway's registry takes them.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

_VERSION = 1
# What every version has in common: version and length of the whole in front, a checksum behind.
_HEAD = struct.Struct("!BH")
_CHECKSUM_BYTES = 4
_MAX_BYTES = 2048
_HEAD_CHARACTERS = 4  # of base64, which hold exactly the head
_PIN_BYTES = 32
_NAME = re.compile(NAME_PATTERN)
_KEY_INFO = b"qvpn invite key"


class InviteTruncated(QvpnError):
    """The link lacks characters at its end."""

    reason = "invite-truncated"


class InviteAltered(QvpnError):
    """The link's checksum or content does not hold."""

    reason = "invite-altered"


class InviteVersionUnknown(QvpnError):
    """The link is whole, but of a version made after this program."""

    reason = "invite-version"


class InviteExpired(QvpnError):
    """The invite has expired, by the clock that is named."""

    reason = "invite-expired"


class Gateway(NamedTuple):
    """Where a gateway listens: a host name or an address (IPv6 without brackets), and a port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Invite:
    """The content of a link. Raises ValueError for a value that no link can carry."""

    #: Ways to the gateway in order of preference, 1 to `MAX_GATEWAYS`.
    gateways: tuple[Gateway, ...]
    #: `SECRET_BYTES` bytes, good for one enrolment.
    secret: bytes = field(repr=False)
    #: SPKI pins as ``sha256/BASE64``; with none, a public certification authority is trusted.
    pins: tuple[str, ...] = ()
    #: The name that the device will have, when the gateway chose one.
    name: str | None = None
    #: UNIX time in whole seconds at which the gateway stops taking the invite, for display.
    expires: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.gateways) <= MAX_GATEWAYS:
            raise ValueError(f"an invite names 1 to {MAX_GATEWAYS} gateways")
        if len(self.pins) > MAX_PINS:
            raise ValueError(f"an invite carries {MAX_PINS} pins at most")
        if len(self.secret) != SECRET_BYTES:
            raise ValueError(f"the secret has {SECRET_BYTES} bytes")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot name a device")
        if self.expires is not None and not 0 < self.expires < 1 << 32:
            raise ValueError(f"{self.expires} is no time of expiry")
        for host, port in self.gateways:
            _check_host(host)
            if not 0 < port <= 0xFFFF:
                raise ValueError(f"port {port} does not exist")
        for pin in self.pins:
            if _pin_text(_pin_digest(pin)) != pin:
                raise ValueError(f"{pin!r} is not a pin in canonical form")

    @property
    def key(self) -> DeviceKey:
        """The key that redeems the invite. The gateway stores its `public_key` and `key_id`."""
        return DeviceKey.from_seed(HKDFExpand(SHA256(), SEED_BYTES, _KEY_INFO).derive(self.secret))

    @property
    def link(self) -> str:
        """The link. Whoever has it can enrol: it belongs into no log."""
        body = b"".join(
            (
                bytes((len(self.gateways),)),
                *(
                    _counted(host.encode()) + port.to_bytes(2, "big")
                    for host, port in self.gateways
                ),
                bytes((len(self.pins),)),
                *map(_pin_digest, self.pins),
                self.secret,
                (self.expires or 0).to_bytes(4),
                _counted((self.name or "").encode()),
            )
        )
        data = _HEAD.pack(_VERSION, _HEAD.size + len(body) + _CHECKSUM_BYTES) + body
        return SCHEME + _encode(data + _checksum(data))

    @classmethod
    def from_characters(cls, characters: str) -> Self:
        """Read what follows ``qvpn://``: base64url, with anything in the alphabet behind it.

        Raises InviteTruncated, InviteAltered and InviteVersionUnknown.
        """
        if len(characters) < _HEAD_CHARACTERS:
            raise InviteTruncated("the invite link has lost almost all its characters", _AGAIN)
        version, size = _HEAD.unpack(_decode(characters[:_HEAD_CHARACTERS]))
        if size > _MAX_BYTES:
            raise _altered()
        needed = -(-4 * size // 3)
        if len(characters) < needed:
            raise InviteTruncated(
                f"the invite link is cut off after {len(characters)} of {needed} characters", _AGAIN
            )
        text = characters[:needed]
        data = _decode(text)
        content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if checksum != _checksum(content) or _encode(data) != text:
            raise _altered()
        if version != _VERSION:
            raise InviteVersionUnknown(
                f"the invite link is of version {version}, which this program does not know",
                "update qvpn",
            )
        try:
            return cls._read(content[_HEAD.size :])
        except ValueError:  # not made by our gateway, whatever its checksum says
            raise _altered() from None

    @classmethod
    def _read(cls, body: bytes) -> Self:
        reader = _Reader(body)
        gateways = tuple(
            Gateway(reader.counted().decode("ascii"), reader.number(2))
            for _ in range(reader.number(1))
        )
        pins = tuple(_pin_text(reader.take(_PIN_BYTES)) for _ in range(reader.number(1)))
        secret = reader.take(SECRET_BYTES)
        expires = reader.number(4)
        name = reader.counted().decode("ascii")
        reader.end()
        return cls(gateways, secret, pins, name or None, expires or None)

    def check_expiry(self, now: float) -> None:
        """Save an attempt that the local clock gives no chance; `now` in UNIX seconds.

        Raises InviteExpired. A clock can be wrong: the gateway's answer is the one that counts.
        """
        if self.expires is not None and now >= self.expires:
            when = datetime.fromtimestamp(self.expires, UTC)
            raise InviteExpired(
                f"the invite expired on {when:%Y-%m-%d at %H:%M} UTC by this computer's clock",
                "ask for a new one, or correct the clock",
            )


def new_secret() -> bytes:
    """The secret of a fresh invite."""
    return secrets.token_bytes(SECRET_BYTES)


_AGAIN = "copy it again, to its last character"


def _altered() -> InviteAltered:
    return InviteAltered(
        "the invite link was changed on its way",
        "copy it again from where it was made, or ask for a new one",
    )


class _Reader:
    """Takes a body apart. Raises ValueError when it is shorter or longer than it says."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self._position : self._position + size]
        if len(taken) < size:
            raise ValueError("short")
        self._position += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def counted(self) -> bytes:
        return self.take(self.number(1))

    def end(self) -> None:
        if self._position != len(self._data):
            raise ValueError("long")


def _check_host(host: str) -> None:
    """Raises ValueError unless `host` is a name, or an address in canonical form."""
    try:
        address = ip_address(host)
    except ValueError:
        check_hostname(host)
    else:
        if str(address) != host:
            raise ValueError(f"{host!r} is not the canonical form of {address}")


def _pin_digest(pin: str) -> bytes:
    return base64.b64decode(pin.removeprefix(PIN_PREFIX), validate=True)


def _pin_text(digest: bytes) -> str:
    if len(digest) != _PIN_BYTES:
        raise ValueError(f"a pin has {_PIN_BYTES} bytes")
    return PIN_PREFIX + base64.b64encode(digest).decode()


def _counted(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECKSUM_BYTES]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
