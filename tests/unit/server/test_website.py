"""What strangers see: one and the same page, whatever they ask."""

import pytest

from qvpn_core.transport.interface import Request
from qvpn_server.website import connect_ip_scope, not_found, refusal

NOW = 1_800_000_000.0
PATH = "/.well-known/masque/ip/*/*/"


def request(
    method: str = "CONNECT", path: str = PATH, protocol: str | None = "connect-ip"
) -> Request:
    return Request(method, "https", "gw.example", path, protocol)


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request("GET", "/", None),
        request("POST", "/login", None),
        request("GET", "/index.html", None),
        request(protocol="connect-udp"),
    ],
)
def test_every_stranger_gets_the_same_page(asked: Request) -> None:
    assert not_found(asked, NOW) == not_found(request("GET", "/x", None), NOW)


def test_the_page_looks_like_one_of_a_small_web_site() -> None:
    status, headers, body = not_found(request("GET", "/", None), NOW)
    assert status == 404
    assert dict(headers) == {
        "content-type": "text/html; charset=utf-8",
        "content-length": str(len(body)),
        "date": "Fri, 15 Jan 2027 08:00:00 GMT",
    }
    assert b"vpn" not in body.lower()


def test_head_gets_the_header_of_get_and_no_content() -> None:
    status, headers, body = not_found(request("HEAD", "/", None), NOW)
    assert (status, headers) == not_found(request("GET", "/", None), NOW)[:2]
    assert body == b""


def test_a_device_is_told_why() -> None:
    status, headers, body = refusal(request(), 503, "no address is free", NOW)
    assert status == 503
    assert dict(headers)["content-length"] == str(len(body))
    assert body == b"no address is free\n"


def test_what_is_a_request_for_a_tunnel() -> None:
    scope = connect_ip_scope(request())
    assert scope is not None
    assert scope.unlimited
    limited = connect_ip_scope(request(path="/.well-known/masque/ip/192.0.2.0%2F24/17/"))
    assert limited is not None
    assert not limited.unlimited


@pytest.mark.parametrize(
    "other",
    [
        request("GET", protocol=None),
        request(protocol=None),
        request(protocol="connect-udp"),
        request(path="/"),
        request(path="/.well-known/masque/ip/"),
        request(path="/.well-known/masque/ip/*/*"),
        request(path="/.well-known/masque/ip/*/999/"),
        request(path="/.well-known/masque/udp/*/*/"),
    ],
)
def test_what_is_not(other: Request) -> None:
    assert connect_ip_scope(other) is None
