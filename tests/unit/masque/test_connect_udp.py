"""The capsule stream beside a proxied UDP flow (RFC 9298, RFC 9297 section 3.5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.masque.capsule import CapsuleError, encode_capsule
from qvpn_core.masque.connect_udp import MAX_PAYLOAD, UdpCapsules


def datagram(payload: bytes, context: bytes = b"\0") -> bytes:
    return encode_capsule(0, context + payload)


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_datagram_capsules_are_payloads_however_they_are_split(
    payloads: list[bytes], step: int
) -> None:
    stream = b"".join(map(datagram, payloads))
    capsules = UdpCapsules()
    got = []
    for start in range(0, len(stream), step):
        got += capsules.receive(stream[start : start + step])
    capsules.receive_end()
    assert got == payloads


def test_other_capsules_and_other_contexts_are_skipped() -> None:
    stream = encode_capsule(0x1234, b"x" * 100_000) + datagram(b"no", b"\2") + datagram(b"yes")
    assert UdpCapsules().receive(stream) == [b"yes"]


def test_the_largest_payload_passes_and_a_larger_one_breaks_the_stream() -> None:
    assert UdpCapsules().receive(datagram(bytes(MAX_PAYLOAD))) == [bytes(MAX_PAYLOAD)]
    with pytest.raises(CapsuleError):
        UdpCapsules().receive(datagram(bytes(MAX_PAYLOAD + 8)))


def test_a_datagram_without_a_context_breaks_the_stream() -> None:
    with pytest.raises(CapsuleError):
        UdpCapsules().receive(encode_capsule(0, b""))


def test_an_end_inside_a_capsule_breaks_the_stream() -> None:
    capsules = UdpCapsules()
    assert capsules.receive(datagram(b"payload")[:-1]) == []
    with pytest.raises(CapsuleError):
        capsules.receive_end()
