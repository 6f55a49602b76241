"""From a gateway's answer to what programs are told."""

from __future__ import annotations

import pytest

from qvpn_core.client.proxy.refusals import Refusal, explain, next_hop, proxy_status


def answer(value: str) -> tuple[tuple[str, str], ...]:
    return (("content-type", "text/plain"), ("proxy-status", value))


@pytest.mark.parametrize(
    ("error", "refusal", "socks", "status"),
    [
        ("destination_ip_prohibited", Refusal.NOT_ALLOWED, 2, 403),
        ("http_request_denied", Refusal.NOT_ALLOWED, 2, 403),
        ("dns_error", Refusal.NO_SUCH_HOST, 4, 502),
        ("destination_unavailable", Refusal.HOST_UNREACHABLE, 4, 502),
        ("destination_ip_unroutable", Refusal.NETWORK_UNREACHABLE, 3, 502),
        ("connection_refused", Refusal.CONNECTION_REFUSED, 5, 502),
        ("connection_timeout", Refusal.TIMED_OUT, 6, 504),
        ("connection_limit_reached", Refusal.FAILED, 1, 502),
        ("some_new_error", Refusal.FAILED, 1, 502),
    ],
)
def test_every_error_has_its_reply(error: str, refusal: Refusal, socks: int, status: int) -> None:
    for value in (f"gw; error={error}", f'gw;error={error}; details="x; error=dns_error"'):
        assert explain(502, answer(value)) is refusal
    assert (refusal.value.socks, refusal.value.status) == (socks, status)


def test_a_proxy_without_proxy_status() -> None:
    assert explain(403, ()) is Refusal.NOT_ALLOWED
    assert explain(504, ()) is Refusal.TIMED_OUT
    assert explain(500, ()) is Refusal.FAILED
    assert explain(None, ()) is Refusal.FAILED
    assert proxy_status(()) is None


def test_the_next_hop() -> None:
    assert next_hop(answer('gw; next-hop="192.0.2.1:53"')) == "192.0.2.1:53"
    assert next_hop(answer("gw; error=dns_error")) is None
