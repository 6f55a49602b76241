"""What a caller without a valid credential sees: the one page of a small web site that has nothing.

Every such caller gets the same 404, whatever he asked and whyever he was not admitted, so that the
gateway cannot be told from a web server without content. Pure functions over a request.
"""

from __future__ import annotations

from email.utils import formatdate

from qvpn_core.masque.uri_template import DEFAULT_TEMPLATE, Scope, match
from qvpn_core.transport.interface import Headers, Request

_PAGE = (
    b"<!DOCTYPE html>\n"
    b'<html lang="en">\n'
    b"<head><title>404 Not Found</title></head>\n"
    b"<body><h1>Not Found</h1><p>The page that you asked for does not exist.</p></body>\n"
    b"</html>\n"
)


def not_found(request: Request, now: float) -> tuple[int, Headers, bytes]:
    """Status, header fields and body for a caller at `now` (UNIX seconds)."""
    return 404, _headers(_PAGE, "text/html; charset=utf-8", now), _content(request, _PAGE)


def refusal(request: Request, status: int, words: str, now: float) -> tuple[int, Headers, bytes]:
    """An answer to an authenticated device that gets no tunnel, with words for its user."""
    text = words.encode() + b"\n"
    return status, _headers(text, "text/plain; charset=utf-8", now), _content(request, text)


def connect_ip_scope(request: Request) -> Scope | None:
    """What a CONNECT-IP request (RFC 9484 section 4.4) asks for, or None for any other request."""
    if request.method != "CONNECT" or request.protocol != "connect-ip":
        return None
    return match(DEFAULT_TEMPLATE, request.path)


def _headers(page: bytes, content_type: str, now: float) -> Headers:
    return (
        ("content-type", content_type),
        ("content-length", str(len(page))),
        ("date", formatdate(now, usegmt=True)),
    )


def _content(request: Request, page: bytes) -> bytes:
    # RFC 9110 section 9.3.2: HEAD is answered with the header fields of GET and no content.
    return b"" if request.method == "HEAD" else page
