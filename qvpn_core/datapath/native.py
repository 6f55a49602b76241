"""The native datapath of a client: the engine moves packets, the reference what the engine leaves.

What the engine hands up takes the reference's way, and so does everything once the engine fails or
the connection is not to be offloaded: one set of rules, and a session never ends for want of speed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from qvpn_core.datapath.aioquic import AioquicDatapath
from qvpn_core.datapath.engine import NativeEngine, NativeOffload, available
from qvpn_core.datapath.interface import Datapath, DatapathCounters, DatapathName, PacketDevice
from qvpn_core.errors import QvpnError
from qvpn_core.transport.http3 import Http3Tunnel
from qvpn_core.transport.interface import HttpTunnel

log = logging.getLogger("qvpn.datapath")


def best_datapath(tun: PacketDevice, tunnel: HttpTunnel) -> Datapath:
    """The fastest datapath that this device, this tunnel and this machine allow."""
    if available() and tun.vnet_header and isinstance(tunnel, Http3Tunnel):
        return NativeDatapath(tun, tunnel)
    return AioquicDatapath(tun, tunnel)


class NativeDatapath:
    """Moves packets between `tun`, which has virtio headers, and `tunnel`."""

    def __init__(self, tun: PacketDevice, tunnel: Http3Tunnel) -> None:
        self._tun = tun
        self._tunnel = tunnel
        self._reference = AioquicDatapath(tun, tunnel)
        self._addresses: Sequence[bytes] = ()
        self._engine: NativeEngine | None = None
        self._offload: NativeOffload | None = None
        self._offloading = False
        self._drops: dict[str, int] = {}  # of an engine that is gone

    @property
    def name(self) -> DatapathName:
        return "native" if self._engine is not None else "aioquic"

    @property
    def counters(self) -> DatapathCounters:
        dropped = dict(self._reference.counters.dropped)
        drops = self._drops if self._engine is None else self._engine.drops()
        for reason, count in drops.items():
            dropped[reason] = dropped.get(reason, 0) + count
        return DatapathCounters(dropped)

    def start(self, addresses: Sequence[bytes]) -> None:
        self._addresses = addresses
        self._reference.set_addresses(addresses)
        try:
            self._tun.set_offload(True)
            self._offloading = True
            self._engine = NativeEngine(self._tun, gateway=False, owner=self)
        except (OSError, QvpnError) as error:
            log.warning("the native datapath cannot be used (%s); going on without it", error)
            self.failed()
            return
        self._offload = self._engine.attach(self._tunnel)
        if self._offload is None:
            self.failed()
        else:
            self._offload.set_addresses(addresses)

    def set_addresses(self, addresses: Sequence[bytes]) -> None:
        self._addresses = addresses
        self._reference.set_addresses(addresses)
        if self._offload is not None:
            self._offload.set_addresses(addresses)

    def packets(self, packets: list[bytes]) -> None:
        self._reference.packets(packets)

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        self._reference.packet_too_big(packet, mtu)

    def close(self) -> None:
        self._stop()
        self._reference.close()

    # From the engine

    def from_tun(self, packets: Sequence[bytes]) -> None:
        self._reference.outgoing(packets)

    def inner(self, tunnel: Http3Tunnel, packets: list[bytes]) -> None:
        """Never called: only a gateway's engine judges destinations."""

    def failed(self) -> None:
        self._stop()
        self._reference.start(self._addresses)

    def _stop(self) -> None:
        engine, self._engine, self._offload = self._engine, None, None
        if engine is not None:
            self._drops = engine.drops()
            engine.close()
        if self._offloading:
            self._offloading = False
            try:
                self._tun.set_offload(False)
            except QvpnError:
                pass  # the device is gone
