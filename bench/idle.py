"""``python -m bench.idle FILE``: many idle sessions from one process, for the gateway's memory.

FILE is JSON: {"host", "port", "pin", "tokens"}; one CONNECT-IP tunnel is opened per token, without
a TUN device, then ``open`` is printed and all are held until SIGTERM. It moves no packets.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from qvpn_core.errors import QvpnError
from qvpn_core.masque.uri_template import DEFAULT_TEMPLATE, expand
from qvpn_core.transport.interface import HttpTunnel, Request
from qvpn_core.transport.reach import connect
from qvpn_core.transport.trust import Trust


class Idle:
    """A handler that wants nothing but to see its address assignment arrive."""

    def __init__(self) -> None:
        self.assigned = asyncio.Event()

    def capsule_data(self, data: bytes) -> None:
        """Any capsule at all: the gateway configured the session."""
        self.assigned.set()

    def capsule_end(self) -> None:
        """The gateway ends the session; `closed` follows."""

    def packets(self, packets: list[bytes]) -> None:
        """Nobody listens."""

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        """Nothing is ever sent."""

    def mtu_changed(self, mtu: int) -> None:
        """Discovery of the path MTU goes on beside."""

    def closed(self, error: QvpnError | None) -> None:
        """A session that does not stay would make the figure a lie."""
        sys.exit(f"a session ended: {error}")


async def _open(setup: dict[str, Any], token: str) -> HttpTunnel:
    handler = Idle()
    request = Request(
        method="CONNECT",
        scheme="https",
        authority=f"{setup['host']}:{setup['port']}",
        path=expand(DEFAULT_TEMPLATE),
        protocol="connect-ip",
        headers=(("capsule-protocol", "?1"), ("authorization", f"Bearer {token}")),
    )
    tunnel = await connect(
        setup["host"],
        setup["port"],
        trust=Trust(pins=(setup["pin"],)),
        request=request,
        handler=handler,
    )
    await asyncio.wait_for(handler.assigned.wait(), 5.0)
    return tunnel


async def _hold(setup: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # One after the other: this measures memory, not a stampede.
    tunnels = [await _open(setup, token) for token in setup["tokens"]]
    await asyncio.sleep(1.0)  # for what follows a handshake: tickets, MTU probes
    print("open", len(tunnels), flush=True)
    await stop.wait()


if __name__ == "__main__":
    try:
        asyncio.run(_hold(json.loads(Path(sys.argv[1]).read_text())))
    except (QvpnError, TimeoutError) as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")
