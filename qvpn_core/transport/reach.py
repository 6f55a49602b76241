"""Opens connections to a gateway as a race says, asks the winner, and closes the others.

`connect`, `open_connection` and `fetch` are the ways to a tunnel, to streams and to a resource;
`reach` is what a session uses, which chooses by itself what to try and what to ask. Who is tried
when is decided in `race.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from qvpn_core.auth.exporter import Exporter
from qvpn_core.errors import (
    CertificateUntrusted,
    GatewayRefused,
    GatewayUnreachable,
    PathTooNarrow,
    QvpnError,
    TunnelLost,
)
from qvpn_core.transport import dial, settings, tls_dial
from qvpn_core.transport.dial import (
    ConnectStage,
    Endpoint,
    RequestMaker,
    SocketFactory,
    StageHandler,
    open_socket,
    resolve,
)
from qvpn_core.transport.http3 import Response
from qvpn_core.transport.interface import (
    HttpConnection,
    HttpTunnel,
    Request,
    TransportName,
    TunnelHandler,
)
from qvpn_core.transport.race import HEAD_START, Entry, Race, schedule
from qvpn_core.transport.tickets import TicketJar
from qvpn_core.transport.trust import Trust

QUIC_ONLY: Final[tuple[TransportName, ...]] = ("quic",)

T = TypeVar("T")


class Connection(Protocol):
    """A connection to a gateway that waits to be asked."""

    async def proven(self) -> None:
        """Wait until the path carries what a tunnel needs. Raises PathTooNarrow, TunnelLost."""

    async def open(
        self, request: Request | RequestMaker, handler: TunnelHandler, on_stage: StageHandler = ...
    ) -> HttpTunnel:
        """Ask for a tunnel; the connection closes with it."""

    async def fetch(
        self, make: Callable[[Exporter], tuple[Request, bytes]], limit: int
    ) -> Response:
        """Make one ordinary request, then close."""

    def share(self) -> HttpConnection:
        """Keep the connection, for any number of requests."""

    def close(self) -> None:
        """Tell the peer, and give everything back. Idempotent."""


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway, and how to get there."""

    host: str
    trust: Trust
    socket_factory: SocketFactory = open_socket
    tickets: TicketJar | None = None

    def dial(
        self, entry: Entry, timeout: float, on_stage: StageHandler
    ) -> AbstractAsyncContextManager[Connection]:
        """A connection for an entry; see `dial.dialled` and `tls_dial.dialled`."""
        if entry.transport == "quic":
            return dial.dialled(
                entry.endpoint, self.host, self.trust, timeout, self.socket_factory, on_stage,
                self.tickets,
            )  # fmt: skip
        return tls_dial.dialled(
            entry.endpoint, self.host, self.trust, timeout, self.socket_factory, on_stage
        )


#: What another way may help against, when it happens while a connection is asked for a tunnel.
NOT_FINAL: Final = (GatewayUnreachable, PathTooNarrow, TunnelLost)


async def reach(
    target: Target,
    entries: Sequence[Entry],
    ask: Callable[[Connection], Awaitable[T]],
    *,
    not_final: tuple[type[QvpnError], ...] = NOT_FINAL,
    timeout: float = settings.HANDSHAKE_TIMEOUT,
    on_stage: StageHandler = lambda stage: None,
) -> T:
    """What `ask` gets from the first connection that is usable; the others are closed.

    Raises what `ask` raises, unless it is `not_final` and another connection is left, and what the
    way there failed by.
    """
    runner = _Runner(target, entries, ask, not_final, timeout, on_stage)
    try:
        return await runner.run()
    finally:
        await runner.close()


class _Runner(Generic[T]):
    """Does what a :class:`Race` says, with a task for each entry."""

    def __init__(
        self,
        target: Target,
        entries: Sequence[Entry],
        ask: Callable[[Connection], Awaitable[T]],
        not_final: tuple[type[QvpnError], ...],
        timeout: float,
        on_stage: StageHandler,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._target, self._entries, self._ask = target, entries, ask
        self._not_final, self._on_stage = not_final, on_stage
        now = self._loop.time()
        self._deadline = now + timeout
        self._race = Race(entries, now)
        self._tasks: dict[asyncio.Task[T], int] = {}
        self._connections: dict[int, Connection] = {}
        self._turns = [asyncio.Event() for _ in entries]
        self._changed = asyncio.Event()
        self._failures: dict[int, QvpnError] = {}
        self._kept: int | None = None

    async def run(self) -> T:
        """See `reach`; `close` must follow."""
        while not self._race.lost:
            now = self._loop.time()
            for number in self._race.due(now):
                self._tasks[asyncio.create_task(self._try(number))] = number
            turn = self._race.turn(now)
            if turn is not None:
                self._turns[turn].set()
            await self._something()
            for task in [task for task in self._tasks if task.done()]:
                number = self._tasks.pop(task)
                try:
                    result = task.result()
                except QvpnError as error:
                    self._fail(number, error)
                else:
                    self._kept = number
                    return result
        raise _verdict(self._entries, self._failures)

    async def _try(self, number: int) -> T:
        entry = self._entries[number]
        left = max(0.0, self._deadline - self._loop.time())
        async with self._target.dial(entry, left, self._on_stage) as connection:
            self._connections[number] = connection
            self._race.ready(number, self._loop.time())
            self._changed.set()
            await self._turns[number].wait()
            return await self._ask(connection)

    async def _something(self) -> None:
        """Wait until a task ends, somebody is ready, or it is time for somebody."""
        at = self._race.next_at()
        news = asyncio.create_task(self._changed.wait())
        wait = None if at is None else max(0.0, at - self._loop.time())
        try:
            await asyncio.wait(
                {news, *self._tasks}, timeout=wait, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            news.cancel()
            with suppress(asyncio.CancelledError):
                await news
        self._changed.clear()

    def _fail(self, number: int, error: QvpnError) -> None:
        """One entry failed; raises `error` when that is the end of all."""
        asked = self._turns[number].is_set()
        others = any(entry.transport == "quic" for entry in self._entries)
        if asked:
            final = not isinstance(error, self._not_final)
        elif isinstance(error, CertificateUntrusted):
            # On TCP it may be the login page of a hotel that answers in the gateway's place.
            final = self._entries[number].transport == "quic" or not others
        else:
            final = not isinstance(error, GatewayUnreachable | GatewayRefused | TunnelLost)
        if final:
            raise error
        self._failures[number] = error
        self._race.failed(number)

    async def close(self) -> None:
        """End every attempt, and every connection but the one that is kept."""
        for task in self._tasks:
            task.cancel()
        try:
            if self._tasks:
                await asyncio.wait(self._tasks)
        except asyncio.CancelledError:
            self._kept = None  # nobody gets the result any more
            raise
        finally:
            for task in self._tasks:
                if task.done() and not task.cancelled():
                    task.exception()  # looked at: it has no say any more
            for number, connection in self._connections.items():
                if number != self._kept:
                    connection.close()


def _verdict(entries: Sequence[Entry], failures: dict[int, QvpnError]) -> QvpnError:
    """Why there is no way at all, in the words that help most."""
    ordered = [failures[number] for number in sorted(failures)]
    impostor = next((each for each in ordered if isinstance(each, CertificateUntrusted)), None)
    if impostor is not None:
        return GatewayUnreachable(
            f"UDP does not get through, and on TCP somebody else answers ({impostor.what})",
            "if this network has a login page, open a web site first",
        )
    narrow = next((each for each in ordered if isinstance(each, PathTooNarrow)), None)
    return narrow or ordered[0]


def in_order(on_stage: StageHandler) -> StageHandler:
    """Each stage is told once, however many connections come to it."""
    told: set[ConnectStage] = set()

    def tell(stage: ConnectStage) -> None:
        if stage not in told:
            told.add(stage)
            on_stage(stage)

    return tell


async def endpoints_of(host: str, port: int, addresses: Sequence[str] = ()) -> list[Endpoint]:
    """A gateway's endpoints, in the resolver's order.

    `addresses` of an earlier session spare the resolver, which may itself be behind the tunnel.
    Raises NameNotResolved.
    """
    found = [each for name in addresses or (host,) for each in await resolve(name, port)]
    return list(dict.fromkeys(found))


async def connect(
    host: str,
    port: int,
    *,
    trust: Trust,
    request: Request | RequestMaker,
    handler: TunnelHandler,
    transports: Sequence[TransportName] = QUIC_ONLY,
    addresses: Sequence[str] = (),
    timeout: float = settings.HANDSHAKE_TIMEOUT,
    socket_factory: SocketFactory = open_socket,
    on_stage: StageHandler = lambda stage: None,
    tickets: TicketJar | None = None,
) -> HttpTunnel:
    """Open a tunnel: resolve, shake hands, check trust, prove the path, ask.

    Tries the host's addresses, within `timeout` seconds in all. The certificate is checked against
    `host` also with `addresses`. Closing the tunnel closes its connection. With `tickets` the
    handshake is shorter when the gateway remembers the last one.

    Raises NameNotResolved, GatewayUnreachable, CertificateUntrusted, AuthenticationFailed,
    GatewayRefused, PathTooNarrow, UsageError, and TunnelLost when it ended at once. The handler's
    `closed` is called only for a tunnel that was returned.
    """
    tell = in_order(on_stage)
    tell("resolving")
    endpoints = await endpoints_of(host, port, addresses)
    return await reach(
        Target(host, trust, socket_factory, tickets),
        schedule(endpoints, transports, HEAD_START),
        lambda connection: connection.open(request, handler, tell),
        timeout=timeout,
        on_stage=tell,
    )


async def open_connection(
    host: str,
    port: int,
    *,
    trust: Trust,
    transports: Sequence[TransportName] = QUIC_ONLY,
    timeout: float = settings.HANDSHAKE_TIMEOUT,
    tickets: TicketJar | None = None,
) -> HttpConnection:
    """A connection for any number of requests; as `connect` in all else.

    It proves no path: what carries no IP packets does without a minimum. Raises NameNotResolved,
    GatewayUnreachable, CertificateUntrusted, GatewayRefused, UsageError.
    """

    async def share(connection: Connection) -> HttpConnection:
        return connection.share()

    return await reach(
        Target(host, trust, tickets=tickets),
        schedule(await endpoints_of(host, port), transports, HEAD_START),
        share,
        timeout=timeout,
    )


async def fetch(
    host: str,
    port: int,
    *,
    trust: Trust,
    make: Callable[[Exporter], tuple[Request, bytes]],
    limit: int,
    transports: Sequence[TransportName] = QUIC_ONLY,
    timeout: float = settings.HANDSHAKE_TIMEOUT,
    socket_factory: SocketFactory = open_socket,
) -> Response:
    """Make one ordinary request with its content on a connection of its own.

    `limit` bounds the answer's content in bytes. Raises as `connect` does, and ProtocolViolation
    for a longer answer, and TunnelLost when the connection ends before the answer: the request may
    have been acted upon, so it is not repeated.
    """
    return await reach(
        Target(host, trust, socket_factory),
        schedule(await endpoints_of(host, port), transports, HEAD_START),
        lambda connection: connection.fetch(make, limit),
        not_final=(),
        timeout=timeout,
    )
