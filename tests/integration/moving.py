"""A client that is to move, with its gateway, and a TCP connection through the tunnel to watch."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.world import World, plan
from tests.world.vpn import PATIENCE, POOL4, POOL6, VpnClient, VpnGateway

#: Seconds in which a connection must go on: promised are 2 after a move, 5 after a restart. The
#: limits are wider, for a busy machine.
MOVED = 5.0
RESTARTED = 12.0


class Scene:
    """A world with a gateway, and a client at home on eth0 that is not connected."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.gateway = VpnGateway(world.gateway, directory / "gateway")
        self.gateway.init("--pool4", POOL4, "--pool6", POOL6)
        self.gateway.start()
        self.client = VpnClient(world.client, directory / "client")
        laptop = self.gateway.token("laptop")
        self.client.add_profile(laptop)
        self.client.add_profile(replace(laptop, gateway="gateway.test"), "named")
        world.add_cable()

    @property
    def peer(self) -> str:
        """Where the gateway sees the client."""
        session = self.gateway.session("laptop")
        return session["peer"] if session is not None else ""

    def settle(self) -> None:
        """Everything as at the beginning."""
        self.world.relay.clear()
        self.world.plug_client()
        if self.client.agent() is not None:
            self.client.command("down", check=False)
        self.world.unuse_cable()
        self.world.move_client(2)
        if not self.gateway.running:
            self.gateway.start()


class Conversation:
    """One TCP connection with an echo service, through the tunnel."""

    def __init__(self, client: VpnClient) -> None:
        target = (plan.ALPHA.v4, plan.ECHO_PORT)
        self._socket = client.host.call(socket.create_connection, target, PATIENCE)
        # What the far end has sent is acknowledged at once, so that it repeats nothing while a
        # gateway restarts: its machine, without NAT for that moment, would reset the connection.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._lines = self._socket.makefile("rb")
        self._number = 0
        self.round_trip()

    def say(self) -> None:
        """Send a line."""
        self._number += 1
        self._socket.sendall(b"line %d\n" % self._number)

    def hear(self, timeout: float = PATIENCE) -> None:
        """Wait for its echo."""
        self._socket.settimeout(timeout)
        assert self._lines.readline() == b"line %d\n" % self._number

    def round_trip(self, timeout: float = PATIENCE) -> float:
        """Seconds from a line to its echo."""
        begin = time.monotonic()
        self.say()
        self.hear(timeout)
        return time.monotonic() - begin

    def close(self) -> None:
        """End it."""
        self._lines.close()
        self._socket.close()


@contextmanager
def conversation(client: VpnClient) -> Iterator[Conversation]:
    talk = Conversation(client)
    try:
        yield talk
    finally:
        talk.close()


def report(what: str, times: list[float]) -> None:
    """For whoever reads the log of a run."""
    shown = " ".join(f"{1000 * each:.0f}" for each in times)
    print(f"\nmoving: {what}: median {1000 * statistics.median(times):.0f} ms of {shown}")


def same_session(scene: Scene) -> Callable[[], None]:
    """Remember the session; the result fails when there has been another one."""
    since = scene.client.peek()["since"]

    def check() -> None:
        status = scene.client.peek()
        assert (status["state"], status["since"]) == ("connected", since)

    return check
