"""Bytes from hostile programs and peers into what `qvpn proxy` and the gateway's services parse."""

from __future__ import annotations

from contextlib import suppress

import pytest

from qvpn_core.client.proxy.http_connect import BadRequest, ConnectHead
from qvpn_core.client.proxy.refusals import explain, next_hop
from qvpn_core.client.proxy.socks import (
    Negotiation,
    SocksError,
    decode_datagram,
    encode_datagram,
)
from qvpn_core.errors import UsageError
from qvpn_core.masque.capsule import CapsuleError, encode_capsule
from qvpn_core.masque.connect_udp import UdpCapsules
from qvpn_core.masque.target import match_udp, parse_authority
from qvpn_server.service_rules import parse_rule
from tests.fuzz.harness import Target, fuzz


def pieces(data: bytes, step: int = 5) -> list[bytes]:
    return [data[start : start + step] for start in range(0, len(data), step)]


def run_socks(data: bytes) -> None:
    def outcome(parts: list[bytes]) -> tuple[bytes, object]:
        negotiation, answers = Negotiation(), b""
        for part in parts:
            try:
                answer, request = negotiation.feed(part)
            except SocksError as error:
                return answers, error.answer
            answers += answer
            if request is not None:
                return answers, request
        return answers, None

    whole, split = outcome([data]), outcome(pieces(data))
    # A refusal of what came in one piece keeps the greeting's answer to itself.
    assert whole[1] == split[1]


def run_http(data: bytes) -> None:
    def outcome(parts: list[bytes]) -> object:
        head = ConnectHead()
        for part in parts:
            try:
                target = head.feed(part)
            except BadRequest as error:
                return error.answer
            if target is not None:
                return target
        return None

    assert outcome([data]) == outcome(pieces(data))


def run_socks_datagram(data: bytes) -> None:
    found = decode_datagram(data)
    if found is not None:
        again = decode_datagram(encode_datagram(*found))
        # A name that is an address becomes one, in its own spelling.
        assert again is not None
        assert again[1:] == found[1:]


def run_udp_capsules(data: bytes) -> None:
    def outcome(parts: list[bytes]) -> tuple[list[bytes], bool]:
        capsules, payloads = UdpCapsules(), []
        try:
            for part in parts:
                payloads += capsules.receive(part)
            capsules.receive_end()
        except CapsuleError:
            return [], False
        return payloads, True

    assert outcome([data]) == outcome(pieces(data))


def run_target(data: bytes) -> None:
    text = data.decode("latin-1")
    target = match_udp(text)
    if target is not None:
        assert match_udp(target.udp_path) == target
    with suppress(ValueError):
        target = parse_authority(text)
        assert parse_authority(str(target)) == target


def run_rule(data: bytes) -> None:
    with suppress(UsageError):
        rule = parse_rule(data.decode("latin-1"))
        assert parse_rule(str(rule)) == rule


def run_proxy_status(data: bytes) -> None:
    headers = (("proxy-status", data.decode("latin-1")),)
    explain(502, headers)
    next_hop(headers)


SOCKS = b"\x05\x02\x00\x02\x05\x01\x00\x03\x0chost.example\x01\xbb"
HTTP = b"CONNECT host.example:443 HTTP/1.1\r\nHost: host.example:443\r\n\r\n"
TARGETS = [
    Target("SOCKS", run_socks, (SOCKS, SOCKS[:4] + b"\x05\x03\x00\x04" + bytes(18))),
    Target("HTTP CONNECT", run_http, (HTTP, b"GET / HTTP/1.1\r\n\r\n")),
    Target(
        "SOCKS datagram",
        run_socks_datagram,
        (encode_datagram("host", 53, b"query"), encode_datagram("2001:db8::1", 53, b"query")),
    ),
    Target(
        "UDP capsules",
        run_udp_capsules,
        (encode_capsule(0, b"\0payload"), encode_capsule(7, b"x") + encode_capsule(0, b"\x40")),
    ),
    Target(
        "target",
        run_target,
        (b"host:80", b"[2001:db8::1]:80", b"/.well-known/masque/udp/2001%3Adb8%3A%3A1/53/"),
    ),
    Target("rule", run_rule, (b"tcp/10.0.0.0/8:22-23", b"[fd00::/8]:53", b"*.example.org", b"*")),
    Target("Proxy-Status", run_proxy_status, (b'qvpn; error=dns_error; next-hop="a:1"',)),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_hostile_bytes(target: Target) -> None:
    assert fuzz(target) > 0
