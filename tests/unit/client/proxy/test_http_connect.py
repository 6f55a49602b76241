"""An HTTP proxy for CONNECT as bytes (RFC 9112)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.client.proxy.http_connect import MAX_HEAD, BadRequest, ConnectHead
from qvpn_core.masque.target import parse_authority

HEAD = b"CONNECT host.example:443 HTTP/1.1\r\nHost: host.example:443\r\n\r\n"


@given(st.integers(1, 80), st.binary(max_size=20))
def test_a_request_however_it_is_split(step: int, early: bytes) -> None:
    head, stream, at, target = ConnectHead(), HEAD + early, 0, None
    while target is None:
        target = head.feed(stream[at : at + step])
        at += step
    assert target == parse_authority("host.example:443")
    assert head.rest + stream[at:] == early


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET http://host.example/ HTTP/1.1\r\n\r\n", 405),
        (b"CONNECT host.example HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT 127.1:80 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT host.example:443 HTTP/2\r\n\r\n", 400),
        (b"\x05\x01\x00\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"CONNECT host.example:443 HTTP/1.1\r\n" + b"x" * MAX_HEAD, 431),
    ],
)
def test_what_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        ConnectHead().feed(head)
    line, _, rest = caught.value.answer.partition(b"\r\n")
    assert line.startswith(b"HTTP/1.1 %d " % status)
    fields, _, body = rest.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in fields
    assert (b"Allow: CONNECT" in fields) == (status == 405)


@given(st.binary(max_size=300))
def test_nothing_but_a_refusal_comes_of_anything(data: bytes) -> None:
    head = ConnectHead()
    with suppress(BadRequest):
        if head.feed(data) is None:
            assert head.rest == data
