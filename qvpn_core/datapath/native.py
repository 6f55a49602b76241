"""The native datapath of a client: the engine moves packets, the reference does the rest.

Whatever the engine does not let pass goes the reference's way, so that both count and answer alike.
When the engine fails by a defect, the reference takes over all of it, and the session goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from qvpn_core.datapath.aioquic import AioquicDatapath
from qvpn_core.datapath.engine import NativeEngine
from qvpn_core.datapath.interface import (
    BAD_SOURCE,
    Datapath,
    DatapathCounters,
    DatapathName,
    OffloadDevice,
)
from qvpn_core.transport.interface import HttpTunnel
from qvpn_core.transport.offload import CarriedRules

log = logging.getLogger(__name__)


class NativeDatapath:
    """Moves packets between `tun` and `tunnel`; see `interface.Datapath`."""

    def __init__(self, tun: OffloadDevice, tunnel: HttpTunnel) -> None:
        self._tun = tun
        self._tunnel = tunnel
        self._reference = AioquicDatapath(tun, tunnel)
        self._engine: NativeEngine | None = None
        self._addresses: Sequence[bytes] = ()
        self._past: dict[str, int] = {}

    @property
    def name(self) -> DatapathName:
        return "aioquic" if self._engine is None else "native"

    @property
    def counters(self) -> DatapathCounters:
        dropped = dict(self._reference.counters.dropped)
        engine = self._engine.drops if self._engine is not None else {}
        refused = self._tunnel.counters.bad_source
        for reason, count in (*self._past.items(), *engine.items(), (BAD_SOURCE, refused)):
            if count:
                dropped[reason] = dropped.get(reason, 0) + count
        return DatapathCounters(dropped)

    def start(self, addresses: Sequence[bytes]) -> None:
        self._addresses = addresses
        if not self._tun.set_offload(True):
            log.info("the kernel has no offloads for TUN devices")
            self._reference.start(addresses)
            return
        engine = NativeEngine(
            gateway=False,
            tun=self._tun.fileno(),
            on_tun=self._reference.outgoing,
            on_gone=self.close,
            on_failure=self._fall_back,
        )
        if not self._tunnel.carry(engine, self._rules()):
            engine.close()
            self._tun.set_offload(False)
            self._reference.start(addresses)
            return
        self._engine = engine
        self._reference.set_addresses(addresses)

    def _rules(self) -> CarriedRules:
        return CarriedRules(tuple(self._addresses))

    def set_addresses(self, addresses: Sequence[bytes]) -> None:
        self._addresses = addresses
        self._reference.set_addresses(addresses)
        if self._engine is not None:
            self._tunnel.allow(self._rules())

    def packets(self, packets: list[bytes]) -> None:
        self._reference.packets(packets)

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        self._reference.packet_too_big(packet, mtu)

    def _fall_back(self, words: str) -> None:
        log.error("the native datapath failed (%s); Python's goes on", words)
        self._end_engine()
        self._reference.start(self._addresses)

    def close(self) -> None:
        self._end_engine()
        self._reference.close()

    def _end_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        for reason, count in engine.drops.items():
            self._past[reason] = self._past.get(reason, 0) + count
        self._tunnel.uncarry()
        engine.close()
        self._tun.set_offload(False)


def make_datapath(tun: OffloadDevice, tunnel: HttpTunnel) -> Datapath:
    """The best datapath that there is here for this tunnel."""
    if NativeEngine.available() and tunnel.transport == "quic":
        return NativeDatapath(tun, tunnel)
    return AioquicDatapath(tun, tunnel)
