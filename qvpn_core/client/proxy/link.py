"""The one connection to the gateway that all proxied services share, kept up.

It is made at the start, made anew with growing pauses when it is lost, and given up when the
gateway does not know this device. Requests that come meanwhile wait for it, but not long. When
another transport is better, new requests go there, and what is open goes on where it is until it
ends. It needs no rights and nothing that is special to one operating system.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NoReturn, TypeVar

from qvpn_core.auth.concealed import Origin, credential_field
from qvpn_core.client.credential import Prover, learn_pins, prover
from qvpn_core.client.preference import TRY_SECONDS, Preference, Recovered
from qvpn_core.client.profiles import TRANSPORTS, Profile
from qvpn_core.client.proxy.refusals import Refusal, ServiceRefused, explain, proxy_status
from qvpn_core.client.states import STABLE_AFTER, retry_delay
from qvpn_core.client.ticketfile import TicketFile
from qvpn_core.errors import GatewayUnreachable, QvpnError
from qvpn_core.masque.connect_udp import PROTOCOL
from qvpn_core.masque.target import Target, parse_authority
from qvpn_core.transport import settings
from qvpn_core.transport.dial import refusal
from qvpn_core.transport.interface import (
    H3_REQUEST_CANCELLED,
    HttpConnection,
    HttpStream,
    HttpTunnel,
    Refused,
    Request,
    StreamReset,
    TransportName,
    TunnelHandler,
)
from qvpn_core.transport.reach import open_connection

log = logging.getLogger("qvpn.proxy")

#: Seconds that a request waits for a connection.
PATIENCE = 5.0
#: Seconds for the gateway's answer: longer than it tries to connect.
ANSWER = 15.0
#: Connections that were left and still carry something; of more, the oldest is closed.
MAX_LEFT = 3
#: No gateway connects to it, and ours says so; strangers are told something else.
_NOWHERE = parse_authority("0.0.0.0:1")
#: What strangers are answered.
_UNKNOWN = (401, 403, 404, 405, 407)

_T = TypeVar("_T")


class GatewayLink:
    """Opens streams and flows through the gateway of a profile.

    `on_change` is told of each error that it goes on after, and None each time it is connected.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        random: Callable[[], float] = random.random,
        on_change: Callable[[QvpnError | None], None] = lambda _error: None,
    ) -> None:
        self._profile = profile
        self._random = random
        self._on_change = on_change
        self._hurry = asyncio.Event()
        self._prove: Prover | None = None
        self._latest: HttpConnection
        #: The same while it is not known to be lost.
        self._connection: HttpConnection | None = None
        self._changed = asyncio.Event()
        self._preference = Preference()
        self._left: list[HttpConnection] = []

    @property
    def transport(self) -> TransportName | None:
        """What carries the connection; None while there is none."""
        return self._connection.transport if self._connection is not None else None

    async def connect(self) -> None:
        """Make the first connection. Raises QvpnError, also when it may pass."""
        self._prove = await prover(self._profile)
        await self._dial()
        self._on_change(None)

    def retry(self) -> None:
        """Somebody does not want to wait: a pause between two attempts ends."""
        self._hurry.set()

    async def run(self) -> NoReturn:
        """Keep the connection up. Raises the QvpnError that trying again cannot mend."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            connected_at = loop.time()
            error = await self._follow()
            self._connection = None
            log.info("the connection to the gateway is lost: %s", error)
            self._on_change(error)
            if loop.time() - connected_at >= STABLE_AFTER:
                attempt = 0
            lost = True
            while lost:
                await self._pause(retry_delay(attempt, self._random))
                attempt += 1
                try:
                    await self._dial()
                    lost = False
                except QvpnError as failure:
                    if not failure.transient:
                        raise
                    log.info("%s", failure)
                    self._on_change(failure)
            log.info("connected again")
            self._on_change(None)

    async def _pause(self, seconds: float) -> None:
        self._hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    async def _follow(self) -> QvpnError:
        """Use the better transport, each time there is one, until the connection is lost: why."""
        while True:
            old = self._latest
            better = asyncio.create_task(self._better(old), name="qvpn better transport")
            ended = asyncio.ensure_future(old.ended())
            try:
                await asyncio.wait((better, ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                better.cancel()
                await asyncio.wait((better,))
                if not better.cancelled() and better.exception() is None:
                    self._move(old, better.result())
            if self._latest is old:
                if not better.cancelled():
                    better.result()  # it failed by a defect
                return await old.ended()

    async def _better(self, way: HttpConnection) -> HttpConnection:
        if len(TRANSPORTS[self._profile.transport]) == 1:
            await asyncio.get_running_loop().create_future()  # there is no other

        async def replace(transport: TransportName, wanted: Callable[[], bool]) -> HttpConnection:
            return await self._open_connection((transport,), TRY_SECONDS, wanted)

        return await self._preference.better(way, replace)

    def _move(self, old: HttpConnection, new: HttpConnection) -> None:
        """Make new requests on another connection; what is open on the old one goes on."""
        log.info("moved from %s to %s", old.transport, new.transport)
        self._use(new)
        self._left = [each for each in (*self._left, old) if not each.closed]
        old.leave()
        while len(self._left) > MAX_LEFT:
            self._left.pop(0).close()

    def close(self) -> None:
        """Close every connection."""
        for connection in (*self._left, self._connection):
            if connection is not None:
                connection.close()

    async def open_tcp(self, target: Target) -> HttpStream:
        """A connection to a service. Raises ServiceRefused."""
        return await self._open(lambda link: link.open_stream(self._tcp_request(link, target)))

    async def open_udp(self, target: Target, handler: TunnelHandler) -> HttpTunnel:
        """A flow of datagrams to a service. Raises ServiceRefused."""
        return await self._open(
            lambda link: link.open_tunnel(self._udp_request(link, target), handler)
        )

    async def _open(self, attempt: Callable[[HttpConnection], Awaitable[_T]]) -> _T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            connection = await self._wait_connected(deadline)
            try:
                async with asyncio.timeout(ANSWER):
                    return await attempt(connection)
            except TimeoutError:
                raise ServiceRefused(Refusal.TIMED_OUT) from None
            except Refused as refused:
                raise ServiceRefused(explain(refused.status, refused.headers)) from None
            except StreamReset:
                raise ServiceRefused(Refusal.FAILED) from None
            except QvpnError:
                # The connection ended: the request does no harm when it is made again.
                if self._connection is connection:
                    self._connection = None

    async def _wait_connected(self, deadline: float) -> HttpConnection:
        try:
            async with asyncio.timeout_at(deadline):
                while self._connection is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ServiceRefused(Refusal.GATEWAY_AWAY) from None
        return self._connection

    async def _dial(self) -> None:
        transports = TRANSPORTS[self._profile.transport]
        self._use(await self._open_connection(transports, settings.HANDSHAKE_TIMEOUT, lambda: True))

    def _use(self, connection: HttpConnection) -> None:
        self._connection = self._latest = connection
        self._changed.set()

    async def _open_connection(
        self, transports: Sequence[TransportName], timeout: float, wanted: Callable[[], bool]
    ) -> HttpConnection:
        """A connection whose other end knows us. Raises QvpnError, and Recovered if not wanted."""
        profile = self._profile
        connection = await open_connection(
            profile.host,
            profile.port,
            trust=profile.trust,
            transports=transports,
            timeout=timeout,
            tickets=TicketFile(profile.name),
        )
        try:
            if not wanted():
                raise Recovered
            async with asyncio.timeout(timeout):
                await self._introduce(connection)
        except TimeoutError:
            connection.close()
            raise GatewayUnreachable(
                f"no answer from {profile.gateway} within {timeout:.0f} seconds",
                "check that the gateway runs",
            ) from None
        except BaseException:
            connection.close()
            raise
        return connection

    async def _introduce(self, connection: HttpConnection) -> None:
        """Learn whether the gateway knows us, before somebody needs it to. Raises QvpnError."""
        try:
            stream = await connection.open_stream(self._tcp_request(connection, _NOWHERE))
        except Refused as refused:
            known = proxy_status(refused.headers) is not None
            if not known and refused.status in _UNKNOWN:
                raise refusal(refused.status) from None
            self._profile = learn_pins(self._profile, refused.headers)
        else:
            stream.reset(H3_REQUEST_CANCELLED)

    def _tcp_request(self, connection: HttpConnection, target: Target) -> Request:
        authority = str(target)
        return self._request(connection, Request("CONNECT", "", authority, ""))

    def _udp_request(self, connection: HttpConnection, target: Target) -> Request:
        authority, _path = self._profile.resource
        request = Request("CONNECT", "https", authority, target.udp_path, PROTOCOL)
        return self._request(connection, request)

    def _request(self, connection: HttpConnection, bare: Request) -> Request:
        assert self._prove is not None
        origin = Origin.of(bare.scheme, bare.authority)
        credential = self._prove(connection.export_keying_material, origin)
        name = credential_field(bare.method, bare.protocol)
        return Request(
            bare.method,
            bare.scheme,
            bare.authority,
            bare.path,
            bare.protocol,
            ((name, credential),),
        )
