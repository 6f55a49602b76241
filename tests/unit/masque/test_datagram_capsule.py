"""DATAGRAM capsules: packets come out whole, however the stream is cut; nothing else changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.masque.capsule import CapsuleDecoder, CapsuleError, encode_capsule
from qvpn_core.masque.datagram_capsule import (
    MAX_DATAGRAM,
    TOO_LONG,
    UNKNOWN_CONTEXT,
    DatagramSplitter,
    encode_packets,
)

OTHER = 0x2A17

packets = st.binary(min_size=1, max_size=2000)
#: (is it a packet, its content)
pieces = st.lists(st.tuples(st.booleans(), st.binary(max_size=200) | packets), max_size=20)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places, whatever they are."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def feed(chunks: list[bytes]) -> tuple[list[bytes], bytes, list[str]]:
    drops: list[str] = []
    splitter = DatagramSplitter(drops.append)
    found: list[bytes] = []
    others = b""
    for chunk in chunks:
        more, rest = splitter.feed(chunk)
        found += more
        others += rest
    splitter.end()
    return found, others, drops


@given(pieces, st.lists(st.integers(min_value=0), max_size=40))
def test_packets_and_other_capsules_come_apart_wherever_the_stream_is_cut(
    pieces: list[tuple[bool, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(
        encode_packets([content]) if is_packet else encode_capsule(OTHER, content)
        for is_packet, content in pieces
    )
    found, others, drops = feed(split(stream, cuts))
    assert found == [content for is_packet, content in pieces if is_packet]
    assert others == b"".join(
        encode_capsule(OTHER, content) for is_packet, content in pieces if not is_packet
    )
    assert drops == []


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_any_decoder_of_capsules_reads_what_is_encoded(content: list[bytes]) -> None:
    capsules = CapsuleDecoder().feed(encode_packets(content))
    assert [capsule.value for capsule in capsules] == [b"\0" + packet for packet in content]


@given(st.binary(max_size=3000), st.lists(st.integers(min_value=0), max_size=20))
def test_random_bytes_do_no_harm_and_cuts_make_no_difference(data: bytes, cuts: list[int]) -> None:
    def run(chunks: list[bytes]) -> tuple[list[bytes], bytes, list[str]]:
        drops: list[str] = []
        splitter = DatagramSplitter(drops.append)
        results = [splitter.feed(chunk) for chunk in chunks]
        found = [packet for packets, _ in results for packet in packets]
        return found, b"".join(rest for _, rest in results), drops

    assert run(split(data, cuts)) == run([data])


@pytest.mark.parametrize(
    ("capsule", "drop"),
    [
        (encode_capsule(0, b""), UNKNOWN_CONTEXT),
        (encode_capsule(0, b"\x01abc"), UNKNOWN_CONTEXT),
        (encode_capsule(0, b"\x40"), UNKNOWN_CONTEXT),
        (encode_capsule(0, bytes(MAX_DATAGRAM + 1)), TOO_LONG),
    ],
)
def test_other_datagrams_are_dropped_and_counted(capsule: bytes, drop: str) -> None:
    after = encode_packets([b"packet"])
    for chunks in ([capsule + after], [bytes([byte]) for byte in capsule + after]):
        found, others, drops = feed(chunks)
        assert drops == [drop]
        assert others == b""
        assert found == [b"packet"]


def test_numbers_in_more_bytes_than_they_need_mean_the_same() -> None:
    assert feed([b"\x40\x00" + b"\x40\x05" + b"\x40\x00abc"])[0] == [b"abc"]


@pytest.mark.parametrize("cut", [1, 2, 3, 10])
def test_a_stream_that_ends_inside_a_datagram_is_malformed(cut: int) -> None:
    splitter = DatagramSplitter(lambda drop: None)
    assert splitter.feed(encode_packets([b"packet" * 20])[:cut]) == ([], b"")
    with pytest.raises(CapsuleError):
        splitter.end()


def test_a_huge_announcement_costs_no_memory() -> None:
    splitter = DatagramSplitter(lambda drop: None)
    splitter.feed(b"\0" + (0xC0 << 56 | 1 << 40).to_bytes(8, "big"))
    for _ in range(100):
        assert splitter.feed(bytes(100_000)) == ([], b"")
    assert len(splitter._pending) == 0
