"""What the benchmark asks of a tunnel, and the control without one.

A peer serves one turn in one :class:`~bench.lab.Lab`: `start_gateway`, then `start_client`, after
which :data:`~bench.lab.TARGET` is reachable through the tunnel, and nothing else is. The lab ends
the processes. Every peer is set to the same inner MTU; none is tuned beyond its own defaults except
where a default would make it another kind of test (encryption, offload into the kernel).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar

from bench.lab import CLIENT_OUTER, GATEWAY_OUTER, LINK, TARGET, Lab, Process


class Peer(ABC):
    """One tunnel in one lab. `mtu` is the inner MTU in bytes."""

    name: ClassVar[str]

    def __init__(self, lab: Lab, mtu: int) -> None:
        self.lab = lab
        self.mtu = mtu
        self._gateway: Process | None = None
        self._client: Process | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Why this peer cannot run here, or None."""
        return None

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """What runs, for the report."""

    @abstractmethod
    def start_gateway(self) -> None:
        """Bring up the far end; returns when it listens."""

    @abstractmethod
    def start_client(self) -> None:
        """Bring up the near end; timed. It may return before packets pass."""

    def hold_idle_sessions(self, count: int) -> bool:
        """Open `count` more sessions at the running gateway; False where it is not measured."""
        return False

    def settle(self) -> None:
        """Called once packets pass: make the inner MTU what was asked, where it is larger."""
        for here, address in (
            (self.lab.client, TARGET),
            (self.lab.gateway, self.client_address()),
        ):
            device = here.device_towards(address)
            if here.mtu(device) > self.mtu:
                here.ip(f"link set {device} mtu {self.mtu}")

    def client_address(self) -> str:
        """The client's address inside the tunnel."""
        found = re.search(r"\bsrc (\S+)", self.lab.client.run("ip", "route", "get", TARGET))
        return found[1] if found else CLIENT_OUTER

    def check(self) -> None:
        """Raise LabError when one of its processes has ended."""
        for process in (self._client, self._gateway):
            if process is not None:
                process.check()

    def pids(self) -> tuple[int | None, int | None]:
        """The process IDs of the client end and the gateway end."""
        return (
            self._client.pid if self._client else None,
            self._gateway.pid if self._gateway else None,
        )


class Raw(Peer):
    """The control: the same link without a tunnel, with the same MTU."""

    name = "raw"

    @classmethod
    def version(cls) -> str:
        return "veth"

    def start_gateway(self) -> None:
        self.lab.gateway.ip(f"link set {LINK} mtu {self.mtu}")

    def start_client(self) -> None:
        self.lab.client.ip(
            f"link set {LINK} mtu {self.mtu}", f"route add {TARGET}/32 via {GATEWAY_OUTER}"
        )
