"""The server's side of SOCKS 5 (RFC 1928) as bytes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.client.proxy.socks import (
    Command,
    Negotiation,
    SocksError,
    SocksRequest,
    decode_datagram,
    encode_datagram,
    encode_reply,
)

GREETING = b"\x05\x01\x00"
CONNECT_IPV4 = b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50"
hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9.-]{0,200}", fullmatch=True), st.ip_addresses().map(str)
)
ports = st.integers(0, 65535)


def address(host: str, port: int) -> bytes:
    """An address as a client writes it."""
    try:
        parsed = ip_address(host)
    except ValueError:
        return b"\x03" + bytes((len(host),)) + host.encode() + port.to_bytes(2, "big")
    kind = 1 if isinstance(parsed, IPv4Address) else 4
    return bytes((kind,)) + parsed.packed + port.to_bytes(2, "big")


@given(hosts, ports, st.sampled_from((1, 3)), st.integers(1, 40), st.binary(max_size=20))
def test_a_negotiation_however_it_is_split(
    host: str, port: int, command: int, step: int, early: bytes
) -> None:
    negotiation = Negotiation()
    stream = GREETING + bytes((5, command, 0)) + address(host, port) + early
    answers, request = b"", None
    at = 0
    while request is None:
        answer, request = negotiation.feed(stream[at : at + step])
        answers += answer
        at += step
    assert answers == b"\x05\x00"
    assert request == SocksRequest(Command(command), host, port)
    assert negotiation.rest + stream[at:] == early


@pytest.mark.parametrize(
    ("stream", "answer"),
    [
        (b"\x04\x01\x00\x50\xc0\x00\x02\x01\x00", b""),  # SOCKS 4
        (b"GET / HTTP/1.1\r\n", b""),
        (b"\x05\x01\x02", b"\x05\xff"),  # only with a password
        (b"\x05\x00", b"\x05\xff"),
        (GREETING + b"\x04" + CONNECT_IPV4[1:], b""),
        (GREETING + b"\x05\x02" + CONNECT_IPV4[2:], encode_reply(7)),  # BIND
        (GREETING + b"\x05\x09" + CONNECT_IPV4[2:], encode_reply(7)),
        (GREETING + b"\x05\x01\x00\x02" + CONNECT_IPV4[4:], encode_reply(8)),
    ],
)
def test_what_is_refused_and_how(stream: bytes, answer: bytes) -> None:
    with pytest.raises(SocksError) as caught:
        Negotiation().feed(stream)
    assert caught.value.answer == answer


@given(st.binary(max_size=300), st.integers(1, 300))
def test_nothing_but_a_refusal_comes_of_anything(data: bytes, step: int) -> None:
    negotiation = Negotiation()
    for start in range(0, len(data), step):
        try:
            _, request = negotiation.feed(data[start : start + step])
        except SocksError:
            return
        if request is not None:
            return
    assert len(negotiation.rest) <= 262  # the longest request


@given(hosts, ports, st.binary(max_size=100))
def test_datagrams_read_back(host: str, port: int, payload: bytes) -> None:
    assert decode_datagram(encode_datagram(host, port, payload)) == (host, port, payload)


@given(st.binary(max_size=60))
def test_a_datagram_is_whole_or_nothing(data: bytes) -> None:
    found = decode_datagram(data)
    if found is not None:
        assert data.endswith(found[2])


def test_fragments_and_unknown_address_types_are_dropped() -> None:
    whole = encode_datagram("192.0.2.1", 53, b"query")
    assert decode_datagram(whole[:2] + b"\x01" + whole[3:]) is None
    assert decode_datagram(whole[:3] + b"\x02" + whole[4:]) is None
    assert decode_datagram(whole[:7]) is None


def test_a_reply_names_the_address_that_was_bound() -> None:
    assert encode_reply(0, "127.0.0.1", 1080) == b"\x05\0\0\x01\x7f\0\0\x01\x04\x38"
    assert encode_reply(0, "::1", 1)[3:20] == b"\x04" + IPv6Address("::1").packed
