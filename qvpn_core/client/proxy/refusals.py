"""Why a service cannot be had: from the gateway's Proxy-Status (RFC 9209) to the words of SOCKS
(RFC 1928 section 6) and of HTTP. Tables and pure functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from qvpn_core.transport.interface import Headers

_ERROR = re.compile(r";\s*error=([a-z_]+)\s*(?:;|$)")
_NEXT_HOP = re.compile(r';\s*next-hop="([^"\\]+)"')


@dataclass(frozen=True, slots=True)
class _Words:
    """A SOCKS reply code, an HTTP status, and a line for a person."""

    socks: int
    status: int
    text: str


class Refusal(Enum):
    """Why, in both languages."""

    FAILED = _Words(1, 502, "the gateway cannot connect to it")
    NOT_ALLOWED = _Words(2, 403, "the gateway does not allow it")
    NETWORK_UNREACHABLE = _Words(3, 502, "the gateway has no route to it")
    NO_SUCH_HOST = _Words(4, 502, "the name has no address")
    HOST_UNREACHABLE = _Words(4, 502, "the host cannot be reached")
    CONNECTION_REFUSED = _Words(5, 502, "the host refused the connection")
    TIMED_OUT = _Words(6, 504, "it does not answer")
    GATEWAY_AWAY = _Words(3, 504, "the gateway cannot be reached")


_BY_ERROR = {
    "destination_ip_prohibited": Refusal.NOT_ALLOWED,
    "http_request_denied": Refusal.NOT_ALLOWED,
    "dns_error": Refusal.NO_SUCH_HOST,
    "dns_timeout": Refusal.HOST_UNREACHABLE,
    "destination_not_found": Refusal.NO_SUCH_HOST,
    "destination_unavailable": Refusal.HOST_UNREACHABLE,
    "destination_ip_unroutable": Refusal.NETWORK_UNREACHABLE,
    "connection_refused": Refusal.CONNECTION_REFUSED,
    "connection_timeout": Refusal.TIMED_OUT,
}
#: Of a proxy that sends no Proxy-Status.
_BY_STATUS = {403: Refusal.NOT_ALLOWED, 504: Refusal.TIMED_OUT}


class ServiceRefused(Exception):
    """A service cannot be had."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value.text)
        self.refusal = refusal


def explain(status: int | None, headers: Headers) -> Refusal:
    """Why an answer was not 2xx; `status` is None for a reset stream."""
    found = _ERROR.search(proxy_status(headers) or "")
    if found is not None:
        return _BY_ERROR.get(found[1], Refusal.FAILED)
    return _BY_STATUS.get(status or 0, Refusal.FAILED)


def proxy_status(headers: Headers) -> str | None:
    """The value of Proxy-Status, which only callers that are known are sent."""
    return next((value for name, value in headers if name == "proxy-status"), None)


def next_hop(headers: Headers) -> str | None:
    """What the gateway is connected to, as ADDRESS:PORT, if it says so."""
    found = _NEXT_HOP.search(proxy_status(headers) or "")
    return found[1] if found is not None else None
