"""DATAGRAM capsules (RFC 9297 section 3.5) taken out of a capsule stream, and put into one.

Where HTTP Datagrams have no frames of their own, they travel between the other capsules of a
request. Here the two are told apart: IP packets (context ID 0, RFC 9484 section 6) come out whole,
everything else goes on byte for byte to whoever reads capsules. It refuses to judge packets and to
read any other capsule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from qvpn_core.masque.capsule import CapsuleError, CapsuleType
from qvpn_core.masque.varint import decode_varint, encode_varint

#: The largest HTTP Datagram in bytes that is kept: an IP packet behind a context ID.
MAX_DATAGRAM: Final = 65_535 + 8

TOO_LONG: Final = "too-long"
UNKNOWN_CONTEXT: Final = "unknown-context"

_LONGEST_HEAD: Final = 1501
#: What stands before a packet of so many bytes: type, length, context ID.
_HEADS: Final = tuple(
    encode_varint(CapsuleType.DATAGRAM) + encode_varint(size + 1) + b"\0"
    for size in range(_LONGEST_HEAD)
)


def datagram_head(size: int) -> bytes:
    """What makes a DATAGRAM capsule with context ID 0 of a packet of `size` bytes behind it."""
    if size < _LONGEST_HEAD:
        return _HEADS[size]
    return encode_varint(CapsuleType.DATAGRAM) + encode_varint(size + 1) + b"\0"


def encode_packets(packets: Iterable[bytes]) -> bytes:
    """Packets as DATAGRAM capsules."""
    return b"".join(part for packet in packets for part in (datagram_head(len(packet)), packet))


class DatagramSplitter:
    """Takes a capsule stream split anywhere. `drop` is told why a datagram was not kept.

    Holds at most one incomplete datagram, and copies each byte a constant number of times.
    """

    __slots__ = ("_drop", "_needed", "_passing", "_pending", "_skipping")

    def __init__(self, drop: Callable[[str], None]) -> None:
        self._drop = drop
        self._pending = bytearray()  # an incomplete head or datagram, from its first byte on
        self._needed = 0  # bytes that `_pending` must hold before another look is worth it
        self._passing = 0  # bytes of another capsule that are still to come
        self._skipping = 0  # bytes of a datagram that is too long

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The IP packets that `data` completes, and what is not DATAGRAM capsules of it."""
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return [], b""
            data = bytes(self._pending)
            self._pending.clear()
        packets: list[bytes] = []
        others: list[bytes] = []
        offset, size = 0, len(data)
        if self._skipping:
            offset = min(self._skipping, size)
            self._skipping -= offset
        while offset < size:
            if self._passing:
                end = min(offset + self._passing, size)
                self._passing -= end - offset
                others.append(data[offset:end])
                offset = end
                continue
            head = _head(data, offset)
            if head is None:
                self._keep(data, offset, size - offset + 1)
                break
            kind, start, length = head
            end = start + length
            if kind != CapsuleType.DATAGRAM:
                self._passing = end - offset  # with its head
            elif length > MAX_DATAGRAM:
                self._drop(TOO_LONG)
                self._skipping = max(0, end - size)
                offset = min(end, size)
            elif end > size:
                self._keep(data, offset, end - offset)
                break
            else:
                if length and data[start] == 0:
                    packets.append(data[start + 1 : end])
                else:
                    self._other_context(data[start:end], packets)
                offset = end
        return packets, b"".join(others)

    def end(self) -> None:
        """The stream finished. Raises CapsuleError when that was inside a datagram."""
        if self._pending or self._skipping:
            raise CapsuleError("the capsule stream ended inside a DATAGRAM capsule")

    def _keep(self, data: bytes, offset: int, needed: int) -> None:
        self._needed = needed
        self._pending += data[offset:]

    def _other_context(self, datagram: bytes, packets: list[bytes]) -> None:
        context = decode_varint(datagram)
        if context is not None and context[0] == 0:  # zero in more bytes than it needs
            packets.append(datagram[context[1] :])
        else:
            self._drop(UNKNOWN_CONTEXT)


def _head(data: bytes, offset: int) -> tuple[int, int, int] | None:
    """Type, start of the value and its length; None while the head is incomplete."""
    if data[offset] == 0 and offset + 3 <= len(data) and data[offset + 1] >> 6 == 1:
        # Nearly all there is: a datagram of 64 to 16383 bytes.
        return 0, offset + 3, (data[offset + 1] & 0x3F) << 8 | data[offset + 2]
    if (kind := decode_varint(data, offset)) is None:
        return None
    if (length := decode_varint(data, kind[1])) is None:
        return None
    return kind[0], length[1], length[0]
