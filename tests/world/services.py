"""The internet host's services, one process for all: HTTP, DNS, UDP and TCP echo, both families.

Every service answers on every address of its namespace, from the address it was asked on. Run as
``python -m tests.world.services``: writes one line to stdout when all listen, and ends when stdin
does.

HTTP: GET /ip (the caller's address), GET /generate_204 (nothing), GET /bytes/N (see `payload`),
POST or PUT /sink (answers with the number of bytes and their SHA-256), GET /queries (the DNS
questions so far, as JSON).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import socket
import socketserver
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from tests.world import dns, plan
from tests.world.payload import BLOCK_SIZE, block

_IPV6_RECVPKTINFO: Final = 49  # linux/in6.h
_IPV6_PKTINFO: Final = 50
#: The latest DNS questions: (asker's address, name, type number, udp or tcp, address asked).
_questions: deque[tuple[str, str, int, str, str]] = deque(maxlen=10_000)
_payload = os.memfd_create("payload")


def plain(address: str) -> str:
    """An address without the IPv4-mapped prefix that dual-stack sockets show."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)


class DualStackServer(socketserver.ThreadingTCPServer):
    """A TCP server for IPv4 and IPv6 at once, one thread per connection."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that vanish are what tests do; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Web(BaseHTTPRequestHandler):
    """The HTTP service."""

    server_version = "world"

    def do_GET(self) -> None:
        if self.path == "/ip":
            self._answer(plain(self.client_address[0]).encode() + b"\n")
        elif self.path == "/queries":
            self._answer(json.dumps(list(_questions)).encode())
        elif self.path == "/generate_204":
            self.send_response(204)
            self.end_headers()
        elif self.path.startswith("/bytes/") and self.path[7:].isdigit():
            self._send_payload(int(self.path[7:]))
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if self.path != "/sink":
            self.send_error(404)
        elif not length.isdigit():
            self.send_error(411)
        else:
            self._swallow(int(length))

    do_PUT = do_POST  # noqa: N815 - the name that BaseHTTPRequestHandler looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - inherited
        """Say nothing."""

    def _head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("content-length", str(length))
        self.end_headers()

    def _answer(self, body: bytes) -> None:
        self._head(len(body))
        self.wfile.write(body)

    def _send_payload(self, left: int) -> None:
        self._head(left)
        while left:
            offset, size = 0, min(left, BLOCK_SIZE)
            while offset < size:
                offset += os.sendfile(self.connection.fileno(), _payload, offset, size - offset)
            left -= size

    def _swallow(self, length: int) -> None:
        digest, left = hashlib.sha256(), length
        while left:
            data = self.rfile.read1(min(left, BLOCK_SIZE))
            if not data:
                return
            digest.update(data)
            left -= len(data)
        self._answer(f"{length} {digest.hexdigest()}\n".encode())


class EchoStream(socketserver.BaseRequestHandler):
    """TCP echo (RFC 862)."""

    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class DnsStream(socketserver.StreamRequestHandler):
    """DNS over TCP."""

    def handle(self) -> None:
        asker, asked = plain(self.client_address[0]), plain(self.request.getsockname()[0])
        while len(prefix := self.rfile.read(2)) == 2:
            query = self.rfile.read(int.from_bytes(prefix, "big"))
            _note(query, asker, "tcp", asked)
            response = dns.answer(query, asker, plan.NAMES, limit=None)
            if response is None:
                return
            self.wfile.write(len(response).to_bytes(2, "big") + response)


def _note(query: bytes, asker: str, protocol: str, asked: str) -> None:
    question = dns.parse(query)
    if question is not None:
        _questions.append((asker, question.name, question.kind, protocol, asked))


def _echo_datagram(data: bytes, asker: str, asked: str) -> bytes | None:
    return data


def _dns_datagram(data: bytes, asker: str, asked: str) -> bytes | None:
    _note(data, asker, "udp", asked)
    return dns.answer(data, asker, plan.NAMES)


def _bind_datagram(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind(("::", port))
    return sock


def _serve_datagrams(
    sock: socket.socket, respond: Callable[[bytes, str, str], bytes | None]
) -> None:
    """Answer each datagram from the address that it was sent to (RFC 3542 section 6.2)."""
    while True:
        data, ancillary, _, peer = sock.recvmsg(65535, socket.CMSG_SPACE(20))
        asked = ancillary[0][2][:16]
        response = respond(data, plain(peer[0]), plain(str(ipaddress.IPv6Address(asked))))
        if response is None:
            continue
        info = asked + struct.pack("=I", 0)  # any interface
        try:
            sock.sendmsg([response], [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, info)], 0, peer)
        except OSError:  # the way back is gone, or the packet does not fit it: UDP may lose
            continue


def main() -> None:
    """Serve until stdin ends."""
    os.write(_payload, block())
    tasks: list[Callable[[], None]] = [
        DualStackServer(("::", port), handler).serve_forever
        for port, handler in (
            (plan.HTTP_PORT, Web),
            (plan.ECHO_PORT, EchoStream),
            (plan.DNS_PORT, DnsStream),
        )
    ]
    echo, questions = _bind_datagram(plan.ECHO_PORT), _bind_datagram(plan.DNS_PORT)
    tasks.append(lambda: _serve_datagrams(echo, _echo_datagram))
    tasks.append(lambda: _serve_datagrams(questions, _dns_datagram))
    for task in tasks:
        threading.Thread(target=task, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
