"""Reading, damaging and refusing IP packets, as much as a relay and a leak test need.

Independent of the code under test on purpose: a mistake in qvpn's own packet code must not hide
here too. Nothing here raises on hostile bytes; what cannot be read is None.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

UDP: Final = 17
TCP: Final = 6
ICMP: Final = 1
ICMP6: Final = 58

#: IPv6 extension headers that are stepped over (RFC 8200 section 4): options and routing.
_SKIPPED_HEADERS: Final = frozenset({0, 43, 60})
_FRAGMENT: Final = 44


@dataclass(frozen=True, slots=True)
class Packet:
    """What a packet says about itself; ports are None without UDP or TCP (or in a later fragment).

    `transport` is the offset in bytes of the header after IP, `data` the whole packet.
    """

    version: int
    source: str
    destination: str
    protocol: int
    source_port: int | None
    destination_port: int | None
    transport: int
    data: bytes


def dissect(data: bytes) -> Packet | None:
    """Read an IPv4 or IPv6 packet, or None when it is neither or cut short in its headers."""
    found = locate(data)
    if found is None:
        return None
    version, protocol, offset, first = found
    ports: tuple[int | None, int | None] = (None, None)
    if first and protocol in (UDP, TCP) and len(data) >= offset + 4:
        ports = struct.unpack_from("!HH", data, offset)
    span = slice(12, 16) if version == 4 else slice(8, 24)
    width = span.stop - span.start
    return Packet(
        version=version,
        source=str(ipaddress.ip_address(data[span])),
        destination=str(ipaddress.ip_address(data[span.stop : span.stop + width])),
        protocol=protocol,
        source_port=ports[0],
        destination_port=ports[1],
        transport=offset,
        data=data,
    )


def locate(data: bytes) -> tuple[int, int, int, bool] | None:
    """(version, protocol, offset of its header in bytes, whether that header is in here).

    The last is False in every fragment but the first. None when the packet cannot be read.
    """
    if not data:
        return None
    version = data[0] >> 4
    if version == 4 and len(data) >= 20:
        offset = (data[0] & 0x0F) * 4
        if not 20 <= offset <= len(data):
            return None
        first = not int.from_bytes(data[6:8], "big") & 0x1FFF
        return 4, data[9], offset, first
    if version == 6 and len(data) >= 40:
        protocol, offset, first = data[6], 40, True
        while protocol in _SKIPPED_HEADERS or protocol == _FRAGMENT:
            if len(data) < offset + 8:
                return None
            if protocol == _FRAGMENT:
                first = not int.from_bytes(data[offset + 2 : offset + 4], "big") & 0xFFF8
                step = 8
            else:
                step = 8 + 8 * data[offset + 1]
            protocol = data[offset]
            offset += step
            if not first:
                break
        return 6, protocol, offset, first
    return None


def is_udp(data: bytes, port: int | None = None) -> bool:
    """Whether the packet is UDP and, with `port`, has that source or destination port."""
    found = locate(data)
    if found is None or found[1] != UDP:
        return False
    if port is None:
        return True
    _, _, offset, first = found
    if not first or len(data) < offset + 4:
        return False
    return port in struct.unpack_from("!HH", data, offset)


def flip_bit(data: bytes, choice: float) -> bytes:
    """Damage one bit of what IP carries; `choice` in [0, 1) says which.

    In UDP the bit is in the payload and the checksum is mended: the damage that checksums miss and
    only a cipher's tag catches. Elsewhere the checksum is left wrong, so the receiving kernel
    drops the packet. A packet with nothing to damage is returned as it is.
    """
    found = locate(data)
    if found is None:
        return data
    _, protocol, offset, first = found
    udp = protocol == UDP and first
    start = offset + 8 if udp else offset
    if start >= len(data):
        return data
    bit = int(choice * (len(data) - start) * 8)
    at = start + bit // 8
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit % 8
    if udp:
        _mend_udp_checksum(damaged, data, offset, at)
    return bytes(damaged)


def _mend_udp_checksum(damaged: bytearray, original: bytes, udp: int, at: int) -> None:
    """Adjust the UDP checksum for a change of the byte at `at` (RFC 1624 section 3)."""
    checksum = int.from_bytes(original[udp + 6 : udp + 8], "big")
    if checksum == 0:  # IPv4 without a checksum
        return
    word = at - (at - udp) % 2
    before = int.from_bytes(original[word : word + 2].ljust(2, b"\0"), "big")
    after = int.from_bytes(damaged[word : word + 2].ljust(2, b"\0"), "big")
    total = (~checksum & 0xFFFF) + (~before & 0xFFFF) + after
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    damaged[udp + 6 : udp + 8] = ((~total & 0xFFFF) or 0xFFFF).to_bytes(2, "big")


def packet_too_big(data: bytes, mtu: int, source4: str, source6: str) -> bytes | None:
    """The ICMP answer of a hop at `source4` or `source6` whose next link takes `mtu` bytes.

    None where a hop stays silent: not IP, or IPv4 without the don't-fragment bit
    (RFC 792, RFC 1191 section 4, RFC 4443 section 3.2).
    """
    found = locate(data)
    if found is None:
        return None
    if found[0] == 4:
        if not data[6] & 0x40:
            return None
        return _icmp4_fragmentation_needed(data, mtu, ipaddress.IPv4Address(source4).packed)
    return _icmp6_too_big(data, mtu, ipaddress.IPv6Address(source6).packed)


def _icmp4_fragmentation_needed(data: bytes, mtu: int, source: bytes) -> bytes:
    message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + data[:548]
    message = _with_checksum(message, 2, message)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(message), 0, 0, 64, ICMP, 0, source, data[12:16]
    )
    return _with_checksum(header, 10, header) + message


def _icmp6_too_big(data: bytes, mtu: int, source: bytes) -> bytes:
    message = struct.pack("!BBHI", 2, 0, 0, mtu) + data[: 1280 - 48]
    target = data[8:24]
    pseudo = source + target + struct.pack("!I3xB", len(message), ICMP6)
    message = _with_checksum(message, 2, pseudo + message)
    header = struct.pack("!IHBB16s16s", 6 << 28, len(message), ICMP6, 64, source, target)
    return header + message


def _with_checksum(message: bytes, at: int, covered: bytes) -> bytes:
    checksum = ~ones_sum(covered) & 0xFFFF
    return message[:at] + checksum.to_bytes(2, "big") + message[at + 2 :]


def ones_sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071); 0xFFFF over a message that is intact."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
