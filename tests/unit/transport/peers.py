"""Peers for tests of QUIC on real loopback sockets: a gateway, a relay, a foreign server.

It refuses to leave anything open: everything here is an async context manager.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import H3Event
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

from qvpn_core.transport.dial import SocketFactory, open_socket
from qvpn_core.transport.interface import Address, HttpTunnel, IncomingRequest, Request
from qvpn_core.transport.listen import QuicListener
from qvpn_core.transport.reach import connect
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import CONNECT_IP, Identity, RecordingHandler

LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@asynccontextmanager
async def gateway(
    identity: Identity,
    on_request: Callable[[IncomingRequest], None],
    addresses: Sequence[Address] = (("127.0.0.1", 0),),
) -> AsyncIterator[QuicListener]:
    """A listener that is closed afterwards."""
    listener = await QuicListener.start(
        addresses,
        certificate=identity.certificate_file,
        private_key=identity.key_file,
        on_request=on_request,
    )
    try:
        yield listener
    finally:
        await listener.close()


async def dial(
    address: Address,
    trust: Trust,
    handler: RecordingHandler | None = None,
    *,
    request: Request = CONNECT_IP,
    timeout: float = 10.0,
    socket_factory: SocketFactory = open_socket,
) -> HttpTunnel:
    """`connect` to an address."""
    return await connect(
        address[0],
        address[1],
        trust=trust,
        request=request,
        handler=handler or RecordingHandler(),
        timeout=timeout,
        socket_factory=socket_factory,
    )


#: Given the direction and a datagram: what goes on, each after so many seconds.
Treatment = Callable[[str, bytes], Sequence[tuple[float, bytes]]]


class Relay:
    """A NAT on the path of one client: forwards datagrams, and treats them as a test says."""

    def __init__(self, gateway: Address) -> None:
        self._loop = asyncio.get_running_loop()
        self._gateway = gateway
        #: Where the client was seen last, and the one address of its whose packets vanish.
        self.client: Address | None = None
        self.dead: Address | None = None
        self._inside = self._socket()
        self._outside = self._socket()
        self._loop.add_reader(self._inside, self._from_client)
        self._loop.add_reader(self._outside, self._from_gateway)
        self.treatment: Treatment = lambda _direction, data: ((0.0, data),)

    @property
    def address(self) -> Address:
        """What the client dials."""
        return cast(Address, self._inside.getsockname())

    def rebind(self) -> None:
        """Forget the mapping: the gateway sees another port from now on."""
        self._loop.remove_reader(self._outside)
        self._outside.close()
        self._outside = self._socket(6 if ":" in self._gateway[0] else 4)
        self._loop.add_reader(self._outside, self._from_gateway)

    def redirect(self, gateway: Address) -> None:
        """Another way to the gateway: from now on it is reached at another of its addresses."""
        self._gateway = gateway
        self.rebind()

    def close(self) -> None:
        """Close both sockets."""
        for sock in (self._inside, self._outside):
            self._loop.remove_reader(sock)
            sock.close()

    @staticmethod
    def _socket(version: int = 4) -> socket.socket:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((LOOPBACK[version], 0))
        return sock

    def _from_client(self) -> None:
        for data, sender in _drain(self._inside):
            self.client = sender
            if sender == self.dead:
                continue
            for delay, copy in self.treatment("up", data):
                self._forward(delay, copy, "up")

    def _from_gateway(self) -> None:
        for data, _ in _drain(self._outside):
            for delay, copy in self.treatment("down", data):
                self._forward(delay, copy, "down")

    def _forward(self, delay: float, data: bytes, direction: str) -> None:
        if delay:
            self._loop.call_later(delay, self._forward, 0.0, data, direction)
        elif self._inside.fileno() < 0:
            pass  # closed meanwhile
        elif direction == "up":
            self._outside.sendto(data, self._gateway)
        elif self.client not in (None, self.dead):
            self._inside.sendto(data, self.client)


def _drain(sock: socket.socket) -> list[tuple[bytes, Address]]:
    received = []
    for _ in range(200):
        try:
            received.append(sock.recvfrom(65535))
        except (BlockingIOError, ConnectionRefusedError):
            break
    return received


@asynccontextmanager
async def relay(to: Address) -> AsyncIterator[Relay]:
    """A relay that is closed afterwards."""
    path = Relay(to)
    try:
        yield path
    finally:
        path.close()


class ForeignProtocol(QuicConnectionProtocol):
    """An HTTP/3 server of somebody else's: subclasses say what it does."""

    h3_class: type[H3Connection] = H3Connection
    http: H3Connection | None = None

    def on_event(self, event: H3Event) -> None:
        """Something of HTTP arrived; nothing is answered here."""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated) and event.alpn_protocol == "h3":
            self.http = self.h3_class(self._quic)
        if self.http is not None:
            for http_event in self.http.handle_event(event):
                self.on_event(http_event)


@asynccontextmanager
async def foreign_server(
    identity: Identity,
    protocol: type[ForeignProtocol],
    *,
    alpn: str = "h3",
    max_datagram_frame_size: int | None = 65535,
) -> AsyncIterator[Address]:
    """A plain aioquic server; yields its address."""
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=[alpn],
        max_datagram_frame_size=max_datagram_frame_size,
    )
    configuration.load_cert_chain(str(identity.certificate_file), str(identity.key_file))
    server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=protocol)
    transport = server._transport
    assert transport is not None
    try:
        yield cast(Address, transport.get_extra_info("sockname"))
    finally:
        server.close()


@asynccontextmanager
async def silent_port() -> AsyncIterator[Address]:
    """A UDP port that takes everything and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield cast(Address, sock.getsockname())


def closed_port() -> Address:
    """A UDP port that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return cast(Address, sock.getsockname())


def ip_packet(size: int, serial: int = 0) -> bytes:
    """An IPv4 packet of `size` bytes, 20 at least, with random content."""
    head = bytes((0x45, 0)) + size.to_bytes(2, "big") + bytes(16)
    return head + random.Random(serial << 16 | size).randbytes(size - 20)
