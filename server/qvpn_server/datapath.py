"""What reads the gateway's TUN: one native engine for all sessions, or the forwarder alone.

The engine forwards what needs no thought, by tables that say the same as the forwarder's, and hands
the rest to it: refusals, packets that are too big, packets of nobody. When it fails, the forwarder
does all of it and no session ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from qvpn_core.datapath.engine import NativeDestinations, NativeEngine, NativeOffload, available
from qvpn_core.datapath.interface import DatapathName, PacketDevice
from qvpn_core.errors import QvpnError, TunUnavailable
from qvpn_core.transport.http3 import Http3Tunnel
from qvpn_server.destinations import Destinations, Verdict
from qvpn_server.forwarding import BATCH, Forwarder
from qvpn_server.sessions import Session

log = logging.getLogger(__name__)


class GatewayDatapath:
    """Moves packets between the TUN and the sessions; close it, or use it as a context manager.

    `stopped` gets a QvpnError when the TUN is gone.
    """

    def __init__(
        self, tun: PacketDevice, forwarder: Forwarder, stopped: asyncio.Future[None]
    ) -> None:
        self._tun = tun
        self._forwarder = forwarder
        self._stopped = stopped
        self._loop = asyncio.get_running_loop()
        self._engine: NativeEngine | None = None
        self._live: dict[Http3Tunnel, tuple[Session, NativeOffload]] = {}
        self._tables: WeakKeyDictionary[Destinations, NativeDestinations] = WeakKeyDictionary()
        self._drops: dict[str, int] = {}  # of an engine that is gone
        self._offloading = False
        self._reading = False

    @property
    def name(self) -> DatapathName:
        """What moves packets now."""
        return "aioquic" if self._engine is None else "native"

    def start(self) -> None:
        """Begin to forward."""
        if available() and self._tun.vnet_header:
            try:
                self._tun.set_offload(True)
                self._offloading = True
                self._engine = NativeEngine(self._tun, gateway=True, owner=self)
                return
            except (OSError, QvpnError) as error:
                log.warning("the native datapath cannot be used: %s", error)
        self.failed()

    def attach(self, session: Session) -> None:
        """Forward for a session that has begun."""
        if self._engine is not None and isinstance(session.tunnel, Http3Tunnel):
            offload = self._engine.attach(session.tunnel)
            if offload is None:
                return
            self._live[session.tunnel] = (session, offload)
            offload.set_addresses([address.packed for address in session.addresses])
            self.follow(session)

    def follow(self, session: Session) -> None:
        """Where a session may send has changed."""
        live = self._live.get(session.tunnel) if isinstance(session.tunnel, Http3Tunnel) else None
        if live is not None:
            live[1].set_destinations(self._table(session.destinations))

    def detach(self, session: Session) -> None:
        """A session ended."""
        if isinstance(session.tunnel, Http3Tunnel):
            self._live.pop(session.tunnel, None)

    def drops(self) -> dict[str, int]:
        """Packets that belong to no session, by reason."""
        drops = dict(self._forwarder.drops)
        for reason, count in (
            self._drops if self._engine is None else self._engine.drops()
        ).items():
            drops[reason] = drops.get(reason, 0) + count
        return drops

    def close(self) -> None:
        """Stop. Idempotent; the TUN and the sessions stay."""
        self._stop()
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._tun.fileno())

    def __enter__(self) -> GatewayDatapath:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # From the engine

    def from_tun(self, packets: Sequence[bytes]) -> None:
        self._forwarder.from_tun(packets, self._loop.time())

    def inner(self, tunnel: Http3Tunnel, packets: list[bytes]) -> None:
        live = self._live.get(tunnel)
        if live is not None:
            self._forwarder.from_device(live[0], packets, self._loop.time())

    def failed(self) -> None:
        self._stop()
        self._read()

    # Without an engine

    def _stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            self._drops = engine.drops()
            engine.close()
            self._live.clear()
        if self._offloading:
            self._offloading = False
            try:
                self._tun.set_offload(False)
            except QvpnError:
                pass  # the device is gone, which whoever reads it next will say

    def _read(self) -> None:
        self._reading = True
        self._loop.add_reader(self._tun.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            packets = self._tun.read_batch(BATCH)
        except TunUnavailable as error:
            self.close()
            if not self._stopped.done():
                self._stopped.set_exception(error)
            return
        self.from_tun(packets)

    def _table(self, destinations: Destinations) -> NativeDestinations:
        """The engine's form of the tables of a policy, made once for all its sessions."""
        table = self._tables.get(destinations)
        if table is None:
            ipv4, ipv6 = (
                [
                    (start, verdict is Verdict.FORWARD)
                    for start, verdict in zip(family.starts, family.verdicts, strict=True)
                ]
                for family in (destinations.ipv4, destinations.ipv6)
            )
            table = self._tables[destinations] = NativeDestinations(ipv4, ipv6)
        return table
