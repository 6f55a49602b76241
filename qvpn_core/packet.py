"""IPv4 and IPv6 packets as bytes: cheap looks at headers, a full parse, ICMP errors, hop limits.

Functions of the datapath (`well_formed`, `source_of`, `destination_of`, `decrement_hop_limit`) make
no objects but bytes and trust that `well_formed` was asked first. `parse` trusts nothing. A packet
is exactly its buffer: bytes behind the length that its header gives make it malformed, because they
would travel on unseen by any check. IPv4 header checksums are left to the kernel that receives the
packet; transport checksums to the host that does. No fragmentation, no reassembly, no sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from struct import Struct

IPPROTO_ICMP = 1
IPPROTO_ICMPV6 = 58

# IPv6 extension headers (RFC 8200 section 4, IANA "IPv6 Extension Header Types").
_HOP_BY_HOP = 0
_FRAGMENT = 44
_AUTHENTICATION = 51
_EXTENSIONS = frozenset({_HOP_BY_HOP, 43, _FRAGMENT, _AUTHENTICATION, 60, 135, 139, 140})
#: The most extension headers that `parse` follows; real packets have at most a handful.
_MAX_EXTENSIONS = 16

# The largest ICMP error in bytes, its IP header included.
_MAX_ICMPV4_SIZE = 576  # RFC 1812 section 4.3.2.3
_MAX_ICMPV6_SIZE = 1280  # RFC 4443 section 2.4(c)

# ICMPv4 types that are queries and replies (RFC 792, RFC 950, RFC 1256). An error about any other
# type might be an error about an error.
_ICMPV4_QUERIES = frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18})
_ICMPV6_FIRST_INFORMATIONAL = 128  # RFC 4443 section 2.1
_ICMPV6_REDIRECT = 137  # RFC 4861 section 4.5

_TTL = 64  # of the ICMP errors we make

_IPV4_HEADER = Struct(">BBHHHBBH4s4s")
_IPV6_HEADER = Struct(">IHBB16s16s")


class PacketError(ValueError):
    """Bytes that are not one whole IP packet."""


@dataclass(frozen=True, slots=True)
class IPPacket:
    """What the headers of a packet say.

    `protocol` is the upper-layer protocol, behind all IPv6 extension headers (RFC 8200 section 4);
    in a fragment that is not the first, what its last readable header announces. `header_length`
    counts the bytes before it, `total_length` all. `fragment_offset` is in bytes.
    """

    version: int
    source: bytes
    destination: bytes
    protocol: int
    hop_limit: int
    header_length: int
    total_length: int
    fragment_offset: int = 0
    more_fragments: bool = False

    @property
    def is_fragment(self) -> bool:
        """Whether this is a part of a larger packet."""
        return self.more_fragments or self.fragment_offset > 0


def ip_version(packet: bytes) -> int:
    """What the version field says; 0 for an empty buffer."""
    return packet[0] >> 4 if packet else 0


def well_formed(packet: bytes) -> bool:
    """Whether version, header length and total length fit the buffer. Constant time."""
    size = len(packet)
    if size < 20:
        return False
    first = packet[0]
    if first >> 4 == 4:
        return 20 <= (first & 0x0F) << 2 <= size and (packet[2] << 8 | packet[3]) == size
    return first >> 4 == 6 and 40 + (packet[4] << 8 | packet[5]) == size


def source_of(packet: bytes) -> bytes:
    """The source address of a well-formed packet: 4 or 16 bytes."""
    return packet[12:16] if packet[0] < 0x50 else packet[8:24]


def destination_of(packet: bytes) -> bytes:
    """The destination address of a well-formed packet: 4 or 16 bytes."""
    return packet[16:20] if packet[0] < 0x50 else packet[24:40]


def is_multicast(address: bytes) -> bool:
    """224.0.0.0/4 or ff00::/8; `address` in 4 or 16 bytes."""
    return address[0] == 0xFF if len(address) == 16 else address[0] & 0xF0 == 0xE0


def is_link_local(address: bytes) -> bool:
    """Never forwarded: 169.254.0.0/16, fe80::/10, and multicast that stays on the link or node.

    RFC 9484 section 7.2; 224.0.0.0/24 by RFC 5771 section 4, ff01::/16 and ff02::/16 by RFC 4291
    section 2.7.
    """
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe" or address[:3] == b"\xe0\0\0"
    first, second = address[0], address[1]
    return (first == 0xFE and second & 0xC0 == 0x80) or (first == 0xFF and second & 0x0F in (1, 2))


def is_loopback(address: bytes) -> bool:
    """127.0.0.0/8 or ::1."""
    return address[0] == 127 if len(address) == 4 else address == _LOOPBACK_V6


def is_unspecified(address: bytes) -> bool:
    """0.0.0.0 or ::."""
    return not any(address)


_LOOPBACK_V6 = bytes(15) + b"\1"
_BROADCAST_V4 = b"\xff" * 4


def parse(packet: bytes) -> IPPacket:
    """The headers of `packet`, IPv6 extension headers followed. Raises PacketError."""
    version = ip_version(packet)
    if version == 4:
        return _parse_v4(packet)
    if version == 6:
        return _parse_v6(packet)
    raise PacketError("empty packet" if not packet else f"IP version {version}")


def _parse_v4(packet: bytes) -> IPPacket:
    if len(packet) < 20:
        raise PacketError("short IPv4 header")
    first, _, total, _, fragment, ttl, protocol, _, source, destination = _IPV4_HEADER.unpack_from(
        packet
    )
    header_length = (first & 0x0F) << 2
    if not 20 <= header_length <= len(packet):
        raise PacketError(f"IPv4 header length {header_length}")
    if total != len(packet):
        raise PacketError(f"IPv4 total length {total} in a packet of {len(packet)} bytes")
    return IPPacket(
        4,
        source,
        destination,
        protocol,
        ttl,
        header_length,
        total,
        (fragment & 0x1FFF) << 3,
        bool(fragment & 0x2000),
    )


def _parse_v6(packet: bytes) -> IPPacket:
    total = len(packet)
    if total < 40:
        raise PacketError("short IPv6 header")
    _, payload, protocol, hop_limit, source, destination = _IPV6_HEADER.unpack_from(packet)
    if 40 + payload != total:
        raise PacketError(f"IPv6 payload length {payload} in a packet of {total} bytes")
    offset, fragment_offset, more_fragments = 40, 0, False
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS or fragment_offset:
            break
        if protocol == _HOP_BY_HOP and offset != 40:
            raise PacketError("IPv6 hop-by-hop options behind another extension header")
        if offset + 8 > total:
            raise PacketError("truncated IPv6 extension header")
        following, length = packet[offset], packet[offset + 1]
        if protocol == _FRAGMENT:
            word = packet[offset + 2] << 8 | packet[offset + 3]
            fragment_offset, more_fragments = word & 0xFFF8, bool(word & 1)
            offset += 8
        else:
            offset += (length + 2) << 2 if protocol == _AUTHENTICATION else (length + 1) << 3
        if offset > total:
            raise PacketError("truncated IPv6 extension header")
        protocol = following
    else:
        raise PacketError(f"more than {_MAX_EXTENSIONS} IPv6 extension headers")
    return IPPacket(
        6,
        source,
        destination,
        protocol,
        hop_limit,
        offset,
        total,
        fragment_offset,
        more_fragments,
    )


def checksum(data: bytes) -> int:
    """The Internet checksum of `data` (RFC 1071), padded with a zero byte if its length is odd."""
    number = int.from_bytes(data, "big") << (len(data) % 2 * 8)
    # 2^16 is 1 modulo 65535, so the remainder is the ones' complement sum of all 16-bit words; the
    # one ambiguity is that a sum of 0 is +0 only if every word is.
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def decrement_hop_limit(packet: bytes) -> bytes | None:
    """A well-formed `packet` with its TTL or hop limit one lower; None when it would reach zero.

    The IPv4 header checksum is adjusted, not made anew (RFC 1624): a wrong one stays wrong.
    """
    if packet[0] >> 4 == 6:
        hop_limit = packet[7]
        return packet[:7] + bytes((hop_limit - 1,)) + packet[8:] if hop_limit > 1 else None
    ttl = packet[8]
    if ttl <= 1:
        return None
    # The word of TTL and protocol falls by 0x0100, so the checksum rises by it, carry included.
    raised = (packet[10] << 8 | packet[11]) + 0x0100
    raised = (raised + (raised >= 0xFFFF)) & 0xFFFF
    return b"".join(
        (packet[:8], bytes((ttl - 1, packet[9], raised >> 8, raised & 0xFF)), packet[12:])
    )


class Unreachable(Enum):
    """Why a packet goes no further: the codes of ICMPv4 type 3 and of ICMPv6 type 1.

    RFC 792, RFC 1812 section 5.2.7.1; RFC 4443 section 3.1. ICMPv4 has no code for a bad source.
    """

    NO_ROUTE = (0, 0)
    HOST = (1, 3)
    PROHIBITED = (13, 1)
    BAD_SOURCE = (13, 5)

    def __init__(self, v4: int, v6: int) -> None:
        self.v4 = v4
        self.v6 = v6


def unreachable(packet: bytes, reason: Unreachable, source: bytes) -> bytes | None:
    """ICMP Destination Unreachable about `packet`, from our address `source` (4 or 16 bytes).

    None when no error may be sent about `packet`, as for all ICMP functions here: RFC 1122 section
    3.2.2 and RFC 4443 section 2.4(e), and for what is not one whole packet. Raises ValueError when
    `source` is not of the packet's IP version.
    """
    return _icmp_error(packet, source, (3, reason.v4), (1, reason.v6))


def packet_too_big(packet: bytes, mtu: int, source: bytes) -> bytes | None:
    """ICMP that tells the sender of `packet` to stay below `mtu` bytes, from `source`.

    ICMPv4 type 3 code 4 (RFC 1191 section 4), also without DF: we do not fragment. ICMPv6 type 2
    (RFC 4443 section 3.2), also to multicast destinations. None and ValueError as `unreachable`.
    """
    return _icmp_error(packet, source, (3, 4), (2, 0), mtu, even_multicast=True)


def time_exceeded(packet: bytes, source: bytes) -> bytes | None:
    """ICMP Time Exceeded in transit about `packet`, from `source`.

    RFC 792; RFC 4443 section 3.3. None and ValueError as `unreachable`.
    """
    return _icmp_error(packet, source, (11, 0), (3, 0))


def _icmp_error(
    packet: bytes,
    source: bytes,
    v4: tuple[int, int],
    v6: tuple[int, int],
    argument: int = 0,
    even_multicast: bool = False,
) -> bytes | None:
    try:
        cause = parse(packet)
    except PacketError:
        return None
    if len(source) != len(cause.source):
        raise ValueError(f"a source of {len(source)} bytes for an IPv{cause.version} packet")
    if cause.version == 4:
        if not _may_answer_v4(packet, cause):
            return None
        return _icmpv4(packet, cause, source, *v4, min(argument, 0xFFFF))
    if not _may_answer_v6(packet, cause, even_multicast):
        return None
    return _icmpv6(packet, cause, source, *v6, argument)


def _may_answer_v4(packet: bytes, cause: IPPacket) -> bool:
    """RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7."""
    if cause.fragment_offset:
        return False
    # 240.0.0.0/4 holds the limited broadcast; no address in it names a single host.
    if cause.destination[0] >= 0xE0 or cause.source[0] >= 0xE0 or cause.source[0] in (0, 127):
        return False
    if cause.protocol != IPPROTO_ICMP:
        return True
    return cause.header_length < len(packet) and packet[cause.header_length] in _ICMPV4_QUERIES


def _may_answer_v6(packet: bytes, cause: IPPacket, even_multicast: bool) -> bool:
    """RFC 4443 section 2.4(e). Later fragments are answered, unless they may be of an error."""
    if is_multicast(cause.destination) and not even_multicast:
        return False
    if is_multicast(cause.source) or is_unspecified(cause.source) or is_loopback(cause.source):
        return False
    if cause.protocol != IPPROTO_ICMPV6:
        return True
    if cause.fragment_offset or cause.header_length >= len(packet):
        return False
    kind = packet[cause.header_length]
    return kind >= _ICMPV6_FIRST_INFORMATIONAL and kind != _ICMPV6_REDIRECT


def _icmpv4(packet: bytes, cause: IPPacket, source: bytes, kind: int, code: int, mtu: int) -> bytes:
    quoted = packet[: _MAX_ICMPV4_SIZE - 28]
    message = bytes((kind, code, 0, 0, 0, 0)) + mtu.to_bytes(2, "big") + quoted
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    # Precedence 6, internetwork control (RFC 1812 section 4.3.2.5); DF, so no ID is needed.
    fields = (0x45, 0xC0, 20 + len(message), 0, 0x4000, _TTL, IPPROTO_ICMP)
    header = _IPV4_HEADER.pack(*fields, 0, source, cause.source)
    return _IPV4_HEADER.pack(*fields, checksum(header), source, cause.source) + message


def _icmpv6(packet: bytes, cause: IPPacket, source: bytes, kind: int, code: int, mtu: int) -> bytes:
    quoted = packet[: _MAX_ICMPV6_SIZE - 48]
    message = bytes((kind, code, 0, 0)) + mtu.to_bytes(4, "big") + quoted
    pseudo_header = (  # RFC 8200 section 8.1
        source + cause.source + len(message).to_bytes(4, "big") + IPPROTO_ICMPV6.to_bytes(4, "big")
    )
    summed = checksum(pseudo_header + message).to_bytes(2, "big")
    header = _IPV6_HEADER.pack(6 << 28, len(message), IPPROTO_ICMPV6, _TTL, source, cause.source)
    return header + message[:2] + summed + message[4:]
