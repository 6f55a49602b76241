"""The Capsule Protocol (RFC 9297 section 3): values of a type on a byte stream.

`encode_capsule` and `CapsuleDecoder` frame and unframe; what a value means is for the modules that
know its type. The decoder never buffers a capsule that nobody asked for: unknown types are skipped
as they arrive, whatever their length (RFC 9297 section 3.2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from qvpn_core.errors import ProtocolViolation
from qvpn_core.masque.varint import decode_varint, encode_varint

#: The largest value in bytes that a decoder buffers: the largest IP packet behind a context ID of
#: eight bytes. It also holds some 1,900 IPv6 or 6,500 IPv4 ranges of a ROUTE_ADVERTISEMENT.
MAX_VALUE_SIZE = 65_535 + 8


class CapsuleType(IntEnum):
    """The capsule types that qvpn speaks (IANA "HTTP Capsule Types")."""

    DATAGRAM = 0x00  # RFC 9297 section 3.5
    ADDRESS_ASSIGN = 0x01  # RFC 9484 section 4.7.1
    ADDRESS_REQUEST = 0x02  # RFC 9484 section 4.7.2
    ROUTE_ADVERTISEMENT = 0x03  # RFC 9484 section 4.7.3
    #: Provisional: changes when draft-ietf-masque-connect-ip-dns becomes an RFC (revision 06).
    DNS_ASSIGN = 0x1ACE79EC


class CapsuleError(ProtocolViolation):
    """A capsule stream that breaks its format: a malformed message (RFC 9297 section 3.3)."""

    #: The HTTP/3 error code to reset the stream with: H3_MESSAGE_ERROR, RFC 9114 section 8.1.
    code: ClassVar[int] = 0x10E


@contextmanager
def malformed(kind: CapsuleType) -> Iterator[None]:
    """Turns the ValueError of a value that breaks a rule into a CapsuleError naming the capsule."""
    try:
        yield
    except ValueError as error:
        raise CapsuleError(f"malformed {kind.name} capsule: {error}") from error


@dataclass(frozen=True, slots=True)
class Capsule:
    """One capsule as it was on the wire."""

    type: int
    value: bytes


def encode_capsule(kind: int, value: bytes) -> bytes:
    """One capsule. Raises ValueError when `kind` is not in 0 to 2^62-1."""
    return encode_varint(kind) + encode_varint(len(value)) + value


class CapsuleDecoder:
    """Takes a capsule stream split anywhere, returns whole capsules of known types in order.

    Buffers at most one incomplete capsule and copies each byte a constant number of times, however
    the stream is split. After an error every call raises it again.
    """

    __slots__ = ("_error", "_known", "_max_value_size", "_needed", "_pending", "_skip")

    def __init__(
        self,
        max_value_size: int = MAX_VALUE_SIZE,
        known: Collection[int] = frozenset(CapsuleType),
    ) -> None:
        """`max_value_size` in bytes bounds the values of the types in `known`."""
        self._max_value_size = max_value_size
        self._known = frozenset(known)
        self._pending = bytearray()  # an incomplete capsule from its first byte on
        self._needed = 0  # how many bytes `_pending` must hold before another look is worth it
        self._skip = 0  # bytes of an unknown capsule's value that are still to come
        self._error: CapsuleError | None = None

    def feed(self, data: bytes) -> list[Capsule]:
        """The capsules that `data` completes.

        Raises CapsuleError when a capsule of a known type announces more than `max_value_size`.
        """
        if self._error is not None:
            raise self._error
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return []
            data = bytes(self._pending)
            self._pending.clear()

        capsules: list[Capsule] = []
        offset = 0
        while offset < len(data):
            header = self._header(data, offset)
            if header is None:
                self._needed = len(data) - offset + 1
                self._pending += data[offset:]
                break
            kind, start, end = header
            if kind not in self._known:
                offset = end
            elif end <= len(data):
                capsules.append(Capsule(kind, data[start:end]))
                offset = end
            else:
                self._needed = end - offset
                self._pending += data[offset:]
                break
        self._skip += max(0, offset - len(data))
        return capsules

    def end(self) -> None:
        """The stream finished. Raises CapsuleError when that was inside a capsule."""
        if self._error is not None:
            raise self._error
        if self._pending or self._skip:
            raise self._fail("the capsule stream ended inside a capsule")

    def _header(self, data: bytes, offset: int) -> tuple[int, int, int] | None:
        """Type, start and end of the value of the capsule at `offset`; None without its header."""
        if (kind := decode_varint(data, offset)) is None:
            return None
        if (length := decode_varint(data, kind[1])) is None:
            return None
        if length[0] > self._max_value_size and kind[0] in self._known:
            raise self._fail(
                f"a capsule of type {kind[0]:#x} announces {length[0]} bytes,"
                f" the limit is {self._max_value_size}"
            )
        return kind[0], length[1], length[1] + length[0]

    def _fail(self, what: str) -> CapsuleError:
        self._error = CapsuleError(what)
        self._pending.clear()
        return self._error


class ValueReader:
    """A cursor over the value of one capsule. Everything raises ValueError past its end."""

    __slots__ = ("_offset", "_value")

    def __init__(self, value: bytes) -> None:
        self._value = value
        self._offset = 0

    def __bool__(self) -> bool:
        """Whether bytes are left."""
        return self._offset < len(self._value)

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._offset + size
        if end > len(self._value):
            raise ValueError(f"truncated: {end - len(self._value)} bytes missing")
        taken = self._value[self._offset : end]
        self._offset = end
        return taken

    def uint8(self) -> int:
        return self.take(1)[0]

    def uint16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def varint(self) -> int:
        decoded = decode_varint(self._value, self._offset)
        if decoded is None:
            raise ValueError("truncated: inside a variable-length integer")
        value, self._offset = decoded
        return value
