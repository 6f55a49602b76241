"""The capsule stream: any split gives the same capsules, nothing unknown is kept, limits hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.errors import ProtocolViolation
from qvpn_core.masque.capsule import (
    MAX_VALUE_SIZE,
    Capsule,
    CapsuleDecoder,
    CapsuleError,
    CapsuleType,
    encode_capsule,
)
from qvpn_core.masque.varint import MAX_VARINT, encode_varint
from qvpn_core.transport.interface import H3_MESSAGE_ERROR

UNKNOWN = 0x17  # reserved to exercise exactly this (RFC 9297 section 5.4)

known_capsules = st.builds(
    Capsule, st.sampled_from([int(kind) for kind in CapsuleType]), st.binary(max_size=40)
)
unknown_capsules = st.builds(
    Capsule,
    st.integers(0, MAX_VARINT).filter(lambda kind: kind not in set(CapsuleType)),
    st.binary(max_size=40),
)


def encoded(capsules: list[Capsule]) -> bytes:
    return b"".join(encode_capsule(capsule.type, capsule.value) for capsule in capsules)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@given(
    capsules=st.lists(st.one_of(known_capsules, unknown_capsules), max_size=8),
    cuts=st.lists(st.integers(0, 1000), max_size=20),
)
def test_however_the_stream_is_split_the_known_capsules_come_out_in_order(
    capsules: list[Capsule], cuts: list[int]
) -> None:
    decoder = CapsuleDecoder()
    received = [c for piece in pieces(encoded(capsules), cuts) for c in decoder.feed(piece)]
    decoder.end()
    assert received == [c for c in capsules if c.type in set(CapsuleType)]


@given(capsules=st.lists(known_capsules, min_size=1, max_size=3), data=st.data())
def test_a_stream_that_ends_inside_a_capsule_is_malformed(
    capsules: list[Capsule], data: st.DataObject
) -> None:
    whole = encoded(capsules)
    last = len(whole) - len(encoded(capsules[-1:]))
    decoder = CapsuleDecoder()
    decoder.feed(whole[: data.draw(st.integers(last + 1, len(whole) - 1))])
    with pytest.raises(CapsuleError, match="ended inside"):
        decoder.end()


def test_a_stream_that_ends_inside_a_skipped_capsule_is_malformed_too() -> None:
    decoder = CapsuleDecoder()
    assert decoder.feed(encode_capsule(UNKNOWN, bytes(100))[:-1]) == []
    with pytest.raises(CapsuleError, match="ended inside"):
        decoder.end()


def test_an_unknown_capsule_of_any_announced_length_is_skipped_without_being_kept() -> None:
    decoder = CapsuleDecoder(max_value_size=16)
    size = 64 << 20
    assert decoder.feed(encode_varint(UNKNOWN) + encode_varint(size)) == []
    chunk = bytes(1 << 20)
    for _ in range(size // len(chunk)):
        assert decoder.feed(chunk) == []
        assert not decoder._pending
    assert decoder.feed(encode_capsule(CapsuleType.DATAGRAM, b"next")) == [
        Capsule(CapsuleType.DATAGRAM, b"next")
    ]


def test_a_known_capsule_over_the_limit_is_refused_before_its_value_arrives() -> None:
    decoder = CapsuleDecoder(max_value_size=16)
    header = encode_varint(CapsuleType.ADDRESS_ASSIGN) + encode_varint(17)
    with pytest.raises(CapsuleError, match="17 bytes, the limit is 16"):
        decoder.feed(header)
    with pytest.raises(CapsuleError, match="17 bytes"):
        decoder.feed(b"")


def test_a_value_at_the_limit_passes() -> None:
    value = bytes(MAX_VALUE_SIZE)
    capsules = CapsuleDecoder().feed(encode_capsule(CapsuleType.DATAGRAM, value))
    assert capsules == [Capsule(CapsuleType.DATAGRAM, value)]


def test_a_large_capsule_in_single_bytes_is_copied_once_not_once_per_byte() -> None:
    # Looking at the capsule again for every byte would copy 2 GB here and run into the timeout.
    stream = encode_capsule(CapsuleType.DATAGRAM, bytes(MAX_VALUE_SIZE))
    decoder = CapsuleDecoder()
    for place in range(len(stream) - 1):
        assert decoder.feed(stream[place : place + 1]) == []
    assert len(decoder.feed(stream[-1:])) == 1


def test_which_types_are_known_is_the_callers_choice() -> None:
    decoder = CapsuleDecoder(known={UNKNOWN})
    stream = encode_capsule(CapsuleType.DATAGRAM, b"skipped") + encode_capsule(UNKNOWN, b"kept")
    assert decoder.feed(stream) == [Capsule(UNKNOWN, b"kept")]


def test_a_capsule_error_is_the_peers_fault_and_carries_the_http3_code() -> None:
    assert issubclass(CapsuleError, ProtocolViolation)
    assert CapsuleError.code == H3_MESSAGE_ERROR
