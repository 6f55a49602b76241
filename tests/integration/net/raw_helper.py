"""The helper's process at the end of a bare socket: what a client says, and what a foe can."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from qvpn_core.client.planner import GatewayOffer, RoutePolicy, SystemState, plan_network
from qvpn_core.helper import protocol, wire
from qvpn_core.net.plan import NetworkPlan

ROOT: Final = str(Path(__file__).resolve().parents[3])
PATIENCE: Final = 20.0
HELLO: Final = protocol.Hello(protocol.VERSION)


class RawHelper:
    """A helper that was started as root starts it. Ended with the block, and then reaped."""

    def __init__(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        its.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with its:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qvpn_core.helper", "session"],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": ROOT, "SECRET": "of the caller"},
            )
        self.socket = ours
        ours.settimeout(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """One packet."""
        socket.send_fds(self.socket, [data], list(descriptors))

    def receive(self) -> tuple[protocol.Reply | None, list[int]]:
        """The next reply and its descriptors; None at the end."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.socket, protocol.MAX_MESSAGE, 4)
        except ConnectionResetError:  # told once when it left something of ours unread
            data, descriptors, _, _ = socket.recv_fds(self.socket, protocol.MAX_MESSAGE, 4)
        return (protocol.decode_reply(data) if data else None), descriptors

    def say(self, request: protocol.Request) -> protocol.Reply | None:
        """A request and its reply, whose descriptors are closed, as by a client that is gone."""
        self.send(protocol.encode(request))
        reply, descriptors = self.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        return reply

    def hello(self) -> None:
        """The greeting, welcomed."""
        assert self.say(HELLO) == protocol.Welcome()

    def open(self, mtu: int = 1300) -> int:
        """The greeting and the device; its descriptor."""
        self.hello()
        self.send(protocol.encode(protocol.OpenTun(mtu)))
        reply, (descriptor,) = self.receive()
        assert isinstance(reply, protocol.Opened), reply
        return descriptor

    def hang_up(self) -> None:
        """What the kernel does for a client that dies; wait for the helper's end."""
        self.socket.close()
        self.wait()

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.wait()

    def terminate(self) -> None:
        """SIGTERM, and do not wait."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(PATIENCE)


def unlock() -> None:
    """`qvpn-helper unlock`, as root."""
    subprocess.run(
        [sys.executable, "-P", "-m", "qvpn_core.helper", "unlock"],
        env={"PYTHONPATH": ROOT},
        check=True,
        timeout=PATIENCE,
        cwd="/",
    )


def plan_for(policy: RoutePolicy | None = None, mtu: int = 1300) -> NetworkPlan:
    """A plan of both IP versions, for everything unless `policy` says otherwise."""
    offer = GatewayOffer(
        (ip_interface("10.86.0.2/32"), ip_interface("fd86::2/128")),
        (ip_network("0.0.0.0/0"), ip_network("::/0")),
    )
    return plan_network(policy or RoutePolicy(), offer, SystemState((("192.0.2.2", 443),)), mtu)


def apply(policy: RoutePolicy | None = None, mtu: int = 1300) -> protocol.Apply:
    """The request for it."""
    return protocol.Apply(wire.pack_network(plan_for(policy, mtu)))
