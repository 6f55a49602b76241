"""Listening for programs of this machine, and serving each: SOCKS, HTTP CONNECT, fixed forwards.

Every connection of a program becomes a stream of its own on the gateway's connection; nothing but
the gateway's answer decides what a program is told. It refuses to look at what programs say to
their services.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from qvpn_core.client.proxy.http_connect import (
    ESTABLISHED,
    BadRequest,
    ConnectHead,
    encode_refusal,
)
from qvpn_core.client.proxy.link import GatewayLink
from qvpn_core.client.proxy.options import Listener, format_address
from qvpn_core.client.proxy.refusals import Refusal, ServiceRefused
from qvpn_core.client.proxy.socks import (
    Command,
    Negotiation,
    Reply,
    SocksError,
    SocksRequest,
    encode_reply,
)
from qvpn_core.client.proxy.udp_associate import Association
from qvpn_core.errors import PortInUse, UsageError
from qvpn_core.masque.target import Target, make_target
from qvpn_core.transport.interface import H3_REQUEST_CANCELLED, Address, HttpStream
from qvpn_core.transport.relay import RelayCounters, relay

log = logging.getLogger("qvpn.proxy")

#: Connections of programs at a time, over all listeners.
MAX_PROGRAMS = 480
#: Seconds for a program to say what it wants.
HANDSHAKE = 30.0
_READ = 4096
_BACKLOG = 256

#: Serves one program's connection; it takes the socket over.
Serve = Callable[[socket.socket], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """An address to listen at, and what is served there."""

    listen: Address
    serve: Serve


def service(link: GatewayLink, listener: Listener) -> Service:
    """What is served at a place to listen at."""
    match listener:
        case Listener("socks"):
            serve = socks(link)
        case Listener("http"):
            serve = http(link)
        case Listener("forward", _, target):
            assert target is not None
            serve = forward(link, target)
    return Service(listener.listen, serve)


class Listeners:
    """Bound sockets; `serve_all` accepts on them."""

    def __init__(self) -> None:
        self._bound: list[tuple[socket.socket, Serve]] = []
        self._programs: set[asyncio.Task[None]] = set()

    def bind(self, service: Service) -> str:
        """Listen; returns the address with its real port. Raises PortInUse, UsageError."""
        host, port = service.listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        text = format_address(service.listen)
        try:
            sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except PermissionError:
            raise UsageError(f"not allowed to listen on {text}", "use a port above 1023") from None
        except OSError as error:
            raise PortInUse(
                f"cannot listen on {text} ({error.strerror})", "use another address or port"
            ) from error
        sock.setblocking(False)
        self._bound.append((sock, service.serve))
        return format_address((host, sock.getsockname()[1]))

    async def serve_all(self) -> None:
        """Accept until cancelled; then everything ends."""
        try:
            async with asyncio.TaskGroup() as group:
                for sock, serve in self._bound:
                    group.create_task(self._accept(sock, serve))
        finally:
            self.close()
            for task in self._programs:
                task.cancel()
            await asyncio.gather(*self._programs, return_exceptions=True)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        for sock, _serve in self._bound:
            sock.close()
        self._bound.clear()

    async def _accept(self, listener: socket.socket, serve: Serve) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _address = await loop.sock_accept(listener)
            except OSError as error:
                # Too many open files, or a program that left at once.
                log.debug("cannot accept a connection: %s", error)
                await asyncio.sleep(0.05)
                continue
            if len(self._programs) >= MAX_PROGRAMS:
                sock.close()
                continue
            sock.setblocking(False)
            task = asyncio.create_task(_guarded(serve, sock), name="qvpn proxied program")
            self._programs.add(task)
            task.add_done_callback(self._programs.discard)


async def _guarded(serve: Serve, sock: socket.socket) -> None:
    with sock:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await serve(sock)
        except (OSError, TimeoutError) as error:
            log.debug("a program's connection ended: %s", error)
        except Exception:
            log.exception("a program's connection ended by a defect")


def forward(link: GatewayLink, target: Target) -> Serve:
    """Every connection goes to one target."""

    async def serve(sock: socket.socket) -> None:
        try:
            stream = await link.open_tcp(target)
        except ServiceRefused as refused:
            log.warning("%s: %s", target, refused)
            return
        await _relay(stream, sock, b"")

    return serve


def http(link: GatewayLink) -> Serve:
    """An HTTP proxy for CONNECT."""

    async def serve(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        head = ConnectHead()
        try:
            async with asyncio.timeout(HANDSHAKE):
                target = None
                while target is None:
                    data = await loop.sock_recv(sock, _READ)
                    if not data:
                        return
                    target = head.feed(data)
        except BadRequest as bad:
            await loop.sock_sendall(sock, bad.answer)
            return
        try:
            stream = await link.open_tcp(target)
        except ServiceRefused as refused:
            log.info("%s: %s", target, refused)
            words = refused.refusal.value
            await loop.sock_sendall(sock, encode_refusal(words.status, words.text))
            return
        await _relay(stream, sock, head.rest, ESTABLISHED)

    return serve


def socks(link: GatewayLink) -> Serve:
    """A SOCKS5 proxy."""

    async def serve(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        negotiation = Negotiation()
        try:
            async with asyncio.timeout(HANDSHAKE):
                request = None
                while request is None:
                    data = await loop.sock_recv(sock, _READ)
                    if not data:
                        return
                    answer, request = negotiation.feed(data)
                    if answer:
                        await loop.sock_sendall(sock, answer)
        except SocksError as error:
            log.info("%s", error)
            if error.answer:
                await loop.sock_sendall(sock, error.answer)
            return
        if request.command is Command.UDP_ASSOCIATE:
            await _associate(link, sock)
        else:
            await _connect(link, sock, request, negotiation.rest)

    return serve


async def _connect(
    link: GatewayLink, sock: socket.socket, request: SocksRequest, rest: bytes
) -> None:
    loop = asyncio.get_running_loop()
    try:
        try:
            target = make_target(request.host, request.port)
        except ValueError:
            raise ServiceRefused(Refusal.NO_SUCH_HOST) from None
        stream = await link.open_tcp(target)
    except ServiceRefused as refused:
        log.info("%s:%d: %s", request.host[:255], request.port, refused)
        await loop.sock_sendall(sock, encode_reply(refused.refusal.value.socks))
        return
    await _relay(stream, sock, rest, encode_reply(Reply.SUCCEEDED))


async def _associate(link: GatewayLink, sock: socket.socket) -> None:
    """An association lives as long as the connection that asked for it."""
    loop = asyncio.get_running_loop()
    local, program = sock.getsockname()[0], sock.getpeername()[0]
    association = Association(link, local, program)
    try:
        await loop.sock_sendall(sock, encode_reply(Reply.SUCCEEDED, *association.address))
        while await loop.sock_recv(sock, _READ):
            pass  # nothing is said on it any more
    finally:
        await association.close()


async def _relay(stream: HttpStream, sock: socket.socket, rest: bytes, answer: bytes = b"") -> None:
    try:
        if answer:
            await asyncio.get_running_loop().sock_sendall(sock, answer)
        if rest:
            await stream.send(rest)
    except BaseException:
        stream.reset(H3_REQUEST_CANCELLED)
        raise
    await relay(stream, sock, RelayCounters())
