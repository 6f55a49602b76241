"""IPv4 fragmentation, checked by reassembling what it makes."""

import random

from hypothesis import given
from hypothesis import strategies as st

from qvpn_server.fragment import fragment, may_fragment
from tests.unit.server.helpers import ip_packet
from tests.world.packets import ones_sum


def offset_of(packet: bytes) -> int:
    return (int.from_bytes(packet[6:8], "big") & 0x1FFF) * 8


def more(packet: bytes) -> bool:
    return bool(packet[6] & 0x20)


def header_of(packet: bytes) -> bytes:
    return packet[: (packet[0] & 0x0F) * 4]


def reassemble(fragments: list[bytes]) -> bytes:
    """RFC 791 section 3.2, for fragments in any order."""
    ordered = sorted(fragments, key=offset_of)
    assert offset_of(ordered[0]) == 0
    assert [more(f) for f in ordered] == [True] * (len(ordered) - 1) + [False]
    payload = b""
    for piece in ordered:
        assert offset_of(piece) == len(payload)
        payload += piece[len(header_of(piece)) :]
    return payload


OPTIONS = [
    b"",
    b"\x94\x04\x00\x00",  # router alert, copied
    b"\x07\x07\x04\x00\x00\x00\x00\x00",  # record route, not copied
    b"\x01\x94\x04\x00\x00\x00\x00\x00",
]


@given(
    size=st.integers(600, 4000),
    mtu=st.integers(68, 1500),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(),
)
def test_fragments_fit_are_sound_and_make_the_packet_again(
    size: int, mtu: int, options: bytes, seed: int
) -> None:
    packet = ip_packet("192.0.2.1", "10.86.0.2", size, dont_fragment=False, options=options)
    fragments = fragment(packet, mtu)
    for piece in fragments:
        assert len(piece) <= max(mtu, 68)
        assert int.from_bytes(piece[2:4], "big") == len(piece)
        assert ones_sum(header_of(piece)) == 0xFFFF, "a sound header checksum"
        assert piece[4:6] == packet[4:6], "the same identification"
        assert piece[12:20] == packet[12:20]
    random.Random(seed).shuffle(fragments)
    assert reassemble(fragments) == packet[len(header_of(packet)) :]


def test_only_the_first_fragment_carries_options_that_are_not_copied() -> None:
    packet = ip_packet("192.0.2.1", "10.86.0.2", 2000, dont_fragment=False, options=OPTIONS[2])
    first, second = fragment(packet, 1280)
    assert header_of(first)[20:] == OPTIONS[2]
    assert header_of(second)[20:] == b""


def test_copied_options_are_in_every_fragment() -> None:
    packet = ip_packet("192.0.2.1", "10.86.0.2", 2000, dont_fragment=False, options=OPTIONS[3])
    first, second = fragment(packet, 1280)
    assert header_of(first)[20:] == OPTIONS[3]
    assert header_of(second)[20:] == OPTIONS[1]


@given(st.integers(300, 1200))
def test_fragments_can_be_fragmented(mtu: int) -> None:
    packet = ip_packet("192.0.2.1", "10.86.0.2", 3000, dont_fragment=False)
    pieces = [piece for part in fragment(packet, 1280) for piece in fragment(part, mtu)]
    assert reassemble(pieces) == packet[20:]


def test_what_forbids_fragmentation() -> None:
    assert may_fragment(ip_packet("192.0.2.1", "10.86.0.2", dont_fragment=False))
    assert not may_fragment(ip_packet("192.0.2.1", "10.86.0.2", dont_fragment=True))
    assert not may_fragment(ip_packet("2001:db8::1", "fd00:86::2"))
