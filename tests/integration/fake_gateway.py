"""A gateway that does what a test wants, for our client to meet: real QUIC, made-up manners.

Runs on the event loop of a scenario inside a namespace (`play`), from where the client's commands,
which block, are called on threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from qvpn_core.transport.interface import HttpTunnel, IncomingRequest
from qvpn_core.transport.listen import QuicListener
from tests.unit.transport.helpers import Changes, Identity, RecordingHandler
from tests.world import Namespace, plan
from tests.world.vpn import PATIENCE, Credentials

P = ParamSpec("P")
T = TypeVar("T")

#: Beside the real gateway's port.
PORT: Final = 4443


class FakeGateway:
    """Accepts every request, then calls `greet` with the tunnel. An async context manager.

    With `status` it answers every request so instead. `handlers` hold what came in on `tunnels`.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        greet: Callable[[HttpTunnel], None] = lambda tunnel: None,
        status: int | None = None,
    ) -> None:
        self._identity = identity
        self._greet = greet
        self._status = status
        self._changes = Changes()
        self.tunnels: list[HttpTunnel] = []
        self.handlers: list[RecordingHandler] = []

    @property
    def credentials(self) -> Credentials:
        """What a profile for this gateway needs."""
        return Credentials("fake", "0" * 64, f"{plan.GATEWAY4}:{PORT}", self._identity.pin)

    async def __aenter__(self) -> Self:
        self._listener = await QuicListener.start(
            [("0.0.0.0", PORT)],
            certificate=self._identity.certificate_file,
            private_key=self._identity.key_file,
            on_request=self._on_request,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._listener.close()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition()` is true; it is asked after each request."""
        await self._changes.until(condition, PATIENCE)

    def _on_request(self, incoming: IncomingRequest) -> None:
        if self._status is not None:
            incoming.respond(self._status)
            return
        handler = RecordingHandler()
        tunnel = incoming.accept(handler)
        self.handlers.append(handler)
        self.tunnels.append(tunnel)
        self._greet(tunnel)
        self._changes.note()


def play(host: Namespace, scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario on an event loop inside a namespace."""
    return host.call(asyncio.run, scenario)


async def meanwhile(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what blocks, such as a command, while the loop goes on."""
    return await asyncio.to_thread(function, *args, **kwargs)
