"""IPv4 fragmentation (RFC 791 section 3.2): what a router does for packets that allow it.

Only for packets from the TUN that exceed a device's tunnel and do not set Don't Fragment; any other
is answered with Packet Too Big. IPv6 routers never fragment (RFC 8200 section 5).
"""

from __future__ import annotations

from qvpn_core.packet import checksum

_DONT_FRAGMENT = 0x4000
_MORE_FRAGMENTS = 0x2000
_FLAGS = 0xE000
_OFFSET = 0x1FFF
_OPTION_END = 0
_OPTION_NOP = 1
_OPTION_COPIED = 0x80


def may_fragment(packet: bytes) -> bool:
    """Whether a well-formed packet is IPv4 without Don't Fragment."""
    return packet[0] >> 4 == 4 and not packet[6] & (_DONT_FRAGMENT >> 8)


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """Split a well-formed packet that :func:`may_fragment` into packets of at most `mtu` bytes.

    A fragment can be split further. `mtu` must be at least 68 bytes (RFC 791 section 3.2).
    """
    header_length = (packet[0] & 0x0F) * 4
    header = packet[:header_length]
    later_header = header[:20] + _copied_options(header[20:])
    payload = packet[header_length:]
    field = int.from_bytes(packet[6:8], "big")
    offset = field & _OFFSET
    fragments = []
    position = 0
    while position < len(payload):
        own_header = header if position == 0 else later_header
        end = position + ((mtu - len(own_header)) & ~7)
        if len(payload) - position <= mtu - len(own_header):
            end = len(payload)
        more = field & _MORE_FRAGMENTS if end == len(payload) else _MORE_FRAGMENTS
        flags = (field & _FLAGS & ~_MORE_FRAGMENTS) | more
        fragments.append(
            _with_header(own_header, flags | (offset + position // 8), payload[position:end])
        )
        position = end
    return fragments


def _with_header(header: bytes, flags_and_offset: int, payload: bytes) -> bytes:
    own = bytearray(header)
    own[0] = 0x40 | len(header) // 4
    own[2:4] = (len(header) + len(payload)).to_bytes(2, "big")
    own[6:8] = flags_and_offset.to_bytes(2, "big")
    own[10:12] = bytes(2)
    own[10:12] = checksum(bytes(own)).to_bytes(2, "big")
    return bytes(own) + payload


def _copied_options(options: bytes) -> bytes:
    """The options that every fragment repeats (RFC 791 section 3.1), padded to 32-bit words."""
    kept = b""
    position = 0
    while position < len(options) and options[position] != _OPTION_END:
        kind = options[position]
        if kind == _OPTION_NOP:
            position += 1
            continue
        length = options[position + 1] if position + 1 < len(options) else 0
        if length < 2:
            break  # malformed: what follows cannot be read
        if kind & _OPTION_COPIED:
            kept += options[position : position + length]
        position += length
    return kept + bytes(-len(kept) % 4)
