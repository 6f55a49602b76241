"""What the gateway's tests share: packets, a tunnel that records, a configuration."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from qvpn_core.transport.interface import Address, Headers, TransportName, TunnelCounters
from qvpn_server.config import GatewayConfig, make_config
from qvpn_server.destinations import Destinations, layers_of
from qvpn_server.registry import Group, GroupPolicy
from qvpn_server.registry.policy import device_policy
from qvpn_server.sessions import Session
from tests.world.packets import ones_sum

UDP = 17
ICMP = 1
ICMP6 = 58


class RecordingTunnel:
    """An `HttpTunnel` that keeps what it is told to send."""

    transport: TransportName = "quic"
    peer: Address = ("192.0.2.7", 4444)
    response_headers: Headers = ()
    rtt = 0.012

    def __init__(self, mtu: int = 1400) -> None:
        self.mtu = mtu
        self.counters = TunnelCounters()
        self.batches: list[list[bytes]] = []
        self.capsules = b""
        self.closed_with: list[int | None] = []

    @property
    def packets(self) -> list[bytes]:
        return [packet for batch in self.batches for packet in batch]

    def send_capsules(self, data: bytes) -> None:
        self.capsules += data

    def send_packets(self, packets: Sequence[bytes]) -> None:
        self.batches.append(list(packets))

    def close(self, error: int | None = None) -> None:
        self.closed_with.append(error)


#: As a registry would number devices, by name.
NUMBERS: dict[str, int] = {}


def make_session(
    device: str,
    *addresses: str,
    mtu: int = 1400,
    config: GatewayConfig | None = None,
    policy: GroupPolicy | None = None,
) -> tuple[Session, RecordingTunnel]:
    """A session of a device whose one group has `policy`."""
    config = config or gateway_config()
    groups = [Group(1, "everyone", policy or GroupPolicy())]
    resolved = device_policy(groups, config)
    tunnel = RecordingTunnel(mtu)
    session = Session(
        NUMBERS.setdefault(device, len(NUMBERS) + 1),
        device,
        tuple(map(ip_address, addresses)),
        tunnel,
        since=1_800_000_000.0,
        mtu=mtu,
        groups=("everyone",),
        policy=resolved,
        destinations=Destinations(layers_of(config, resolved)),
        tell=lambda before: None,
    )
    return session, tunnel


def gateway_config(**changes: Any) -> GatewayConfig:
    """A gateway with both pools: 10.86.0.0/16 and fd00:86::/64."""
    values: dict[str, Any] = {
        "host": "gw.example",
        "certificate": Path("certificate.pem"),
        "private_key": Path("private-key.pem"),
        "pool4": "10.86.0.0/16",
        "pool6": "fd00:86::/64",
    }
    return make_config(**(values | changes))


def ip_packet(
    source: str,
    destination: str,
    size: int = 100,
    *,
    protocol: int = UDP,
    dont_fragment: bool = True,
    options: bytes = b"",
) -> bytes:
    """A packet of `size` bytes in all, its payload a counting pattern."""
    from_address, to_address = ip_address(source), ip_address(destination)
    if from_address.version == 6:
        payload = _pattern(size - 40)
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return header + from_address.packed + to_address.packed + payload
    header_length = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH",
        0x40 | header_length // 4,
        0,
        size,
        0x1234,
        0x4000 if dont_fragment else 0,
        64,
        protocol,
        0,
    )
    header = head + from_address.packed + to_address.packed + options
    summed = ~ones_sum(header) & 0xFFFF
    return header[:10] + struct.pack("!H", summed) + header[12:] + _pattern(size - header_length)


def _pattern(size: int) -> bytes:
    return bytes(index * 7 & 0xFF for index in range(size))
