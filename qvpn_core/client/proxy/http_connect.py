"""An HTTP proxy's side of CONNECT over HTTP/1.1 (RFC 9110 section 9.3.6, RFC 9112), sans-IO.

Only CONNECT: whoever wants `http://` resources fetched for him is told that this is no such proxy.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from qvpn_core.masque.target import Target, parse_authority

#: Bytes of a request head; the longest honest one has some cookies' worth of fields.
MAX_HEAD = 16 << 10
_END = b"\r\n\r\n"
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[01]")


class BadRequest(Exception):
    """The request cannot be served; `answer` is to be sent before closing."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.answer = encode_refusal(status, words)


class ConnectHead:
    """One client until it has said what it wants."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> Target | None:
        """Where the client wants to be connected to, once its head is whole. Raises BadRequest."""
        self._pending += data
        end = self._pending.find(_END)
        if end < 0 and len(self._pending) <= MAX_HEAD:
            return None
        if not 0 <= end <= MAX_HEAD:
            raise BadRequest(431, "the request's head is too large")
        head, self._pending = self._pending[:end], self._pending[end + len(_END) :]
        line = _LINE.fullmatch(head.partition(b"\r\n")[0])
        if line is None:
            raise BadRequest(400, "this is not an HTTP/1.1 request")
        if line[1] != b"CONNECT":
            raise BadRequest(405, "this proxy only serves CONNECT: use it for https, or use SOCKS")
        try:
            return parse_authority(line[2].decode("ascii"))
        except ValueError as error:
            raise BadRequest(400, str(error)) from None

    @property
    def rest(self) -> bytes:
        """What came behind the head."""
        return self._pending


#: The answer to a request that succeeded.
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def encode_refusal(status: int, words: str) -> bytes:
    """An answer that is no 2xx, with words for a person."""
    body = words.encode() + b"\n"
    allow = "Allow: CONNECT\r\n" if status == HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{allow}"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
