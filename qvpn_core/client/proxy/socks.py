"""SOCKS version 5 (RFC 1928), the server's side, sans-IO.

Bytes of a client go in; what to answer and what it wants come out. It knows no method but "no
authentication required", for it listens on this machine only, and no SOCKS before version 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

VERSION = 5
_NO_AUTHENTICATION = 0x00
_NO_ACCEPTABLE_METHODS = 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_SIZES = {_IPV4: 4, _IPV6: 16}
_MAX_NAME = 255


class Command(IntEnum):
    """What a client asks for (section 4)."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class Reply(IntEnum):
    """What it is answered (section 6)."""

    SUCCEEDED = 0
    FAILURE = 1
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class SocksError(Exception):
    """The client cannot be served; `answer` is to be sent before closing."""

    def __init__(self, what: str, answer: bytes = b"") -> None:
        super().__init__(what)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """What a client wants. The host is the text of an address, or a name, unchecked."""

    command: Command
    host: str
    port: int


class Negotiation:
    """One client until it has said what it wants. Buffers a few hundred bytes at most."""

    def __init__(self) -> None:
        self._pending = b""
        self._greeted = False

    def feed(self, data: bytes) -> tuple[bytes, SocksRequest | None]:
        """What to answer now, and what the client wants, once it has said it all.

        Raises SocksError.
        """
        self._pending += data
        answer = b""
        if not self._greeted:
            if not self._greeting():
                return b"", None
            answer = bytes((VERSION, _NO_AUTHENTICATION))
        return answer, self._request()

    @property
    def rest(self) -> bytes:
        """What came behind the request, from a client that does not wait for the reply."""
        return self._pending

    def _greeting(self) -> bool:
        """Whether the whole of it is there (section 3)."""
        pending = self._pending
        if pending and pending[0] != VERSION:
            raise SocksError(f"a client speaks version {pending[0]} of SOCKS, or something else")
        if len(pending) < 2 or len(pending) < 2 + pending[1]:
            return False
        methods = pending[2 : 2 + pending[1]]
        if _NO_AUTHENTICATION not in methods:
            refusal = bytes((VERSION, _NO_ACCEPTABLE_METHODS))
            raise SocksError("a client insists on authentication", refusal)
        self._pending = pending[2 + pending[1] :]
        self._greeted = True
        return True

    def _request(self) -> SocksRequest | None:
        pending = self._pending
        if len(pending) < 5:
            return None
        version, command, _reserved, kind = pending[:4]
        if version != VERSION:
            raise SocksError("a client's request is not one of SOCKS 5")
        if kind not in (_IPV4, _NAME, _IPV6):
            answer = encode_reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED)
            raise SocksError(f"a client uses the unknown address type {kind}", answer)
        where = _address(pending, 3)
        if where is None:
            return None
        host, port, end = where
        if command not in (Command.CONNECT, Command.UDP_ASSOCIATE):
            answer = encode_reply(Reply.COMMAND_NOT_SUPPORTED)
            raise SocksError(f"a client asks for the command {command}", answer)
        self._pending = pending[end:]
        return SocksRequest(Command(command), host, port)


def encode_reply(code: int, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """A reply with the address that was bound, for UDP ASSOCIATE; else it means nothing."""
    return bytes((VERSION, code, 0)) + _encode_address(host, port)


def decode_datagram(data: bytes) -> tuple[str, int, bytes] | None:
    """Host, port and payload of a client's datagram (section 7).

    None for one that is malformed or a fragment, which are to be dropped.
    """
    if len(data) < 5 or data[2] != 0:
        return None
    where = _address(data, 3)
    return None if where is None else (where[0], where[1], data[where[2] :])


def encode_datagram(host: str, port: int, payload: bytes) -> bytes:
    """A datagram for the client that came from `host`."""
    return b"\0\0\0" + _encode_address(host, port) + payload


def _address(data: bytes, at: int) -> tuple[str, int, int] | None:
    """Host, port and where they end; None when they are not all there, or of no known type."""
    kind = data[at]
    if kind == _NAME:
        start, size = at + 2, data[at + 1]
    elif kind in _SIZES:
        start, size = at + 1, _SIZES[kind]
    else:
        return None
    end = start + size
    if end + 2 > len(data):
        return None
    raw = data[start:end]
    host = raw.decode("latin-1") if kind == _NAME else str(ip_address(raw))
    return host, int.from_bytes(data[end : end + 2], "big"), end + 2


def _encode_address(host: str, port: int) -> bytes:
    try:
        address = ip_address(host)
    except ValueError:
        name = host.encode("latin-1")[:_MAX_NAME]
        return bytes((_NAME, len(name))) + name + port.to_bytes(2, "big")
    kind = {IPv4Address: _IPV4, IPv6Address: _IPV6}[type(address)]
    return bytes((kind,)) + address.packed + port.to_bytes(2, "big")
