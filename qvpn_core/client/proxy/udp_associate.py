"""UDP ASSOCIATE of SOCKS (RFC 1928 section 7): datagrams of one program, a flow for each target.

Flows are opened when they are needed, closed when they are idle, and few: the one that was used
longest ago makes room. What cannot be passed on is dropped, as UDP does. Nobody but the program
that made the association can send through it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict, deque
from collections.abc import Callable

from qvpn_core.client.proxy.link import GatewayLink
from qvpn_core.client.proxy.refusals import ServiceRefused, next_hop
from qvpn_core.client.proxy.socks import decode_datagram, encode_datagram
from qvpn_core.errors import QvpnError
from qvpn_core.masque.capsule import CapsuleError
from qvpn_core.masque.connect_udp import UdpCapsules
from qvpn_core.masque.target import Target, make_target, parse_authority
from qvpn_core.transport.interface import Address, HttpTunnel

#: Flows of one association.
MAX_FLOWS = 64
#: Datagrams that wait for a flow to open.
MAX_WAITING = 16
#: Seconds without a datagram after which a flow is closed (RFC 4787, requirement 5).
IDLE = 120.0
#: Seconds for which a target that was refused is not tried again.
REFUSED = 5.0
#: Datagrams read at once before others have their turn.
BATCH = 64


class Association:
    """One association, from its making to `close`."""

    def __init__(self, link: GatewayLink, local: str, program: str) -> None:
        """Bind at the address `local`, for a program at the address `program`. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._program = program
        self._peer: Address | None = None
        self._flows: OrderedDict[Target, _Flow] = OrderedDict()
        self._sock = socket.socket(
            socket.AF_INET6 if ":" in local else socket.AF_INET, socket.SOCK_DGRAM
        )
        try:
            self._sock.setblocking(False)
            self._sock.bind((local, 0))
        except OSError:
            self._sock.close()
            raise
        self._loop.add_reader(self._sock, self._readable)

    @property
    def address(self) -> Address:
        """Where the program has to send its datagrams."""
        host, port = self._sock.getsockname()[:2]
        return host, port

    async def close(self) -> None:
        """End all flows."""
        self._loop.remove_reader(self._sock)
        self._sock.close()
        flows = list(self._flows.values())
        self._flows.clear()
        for flow in flows:
            flow.task.cancel()
        await asyncio.gather(*(flow.task for flow in flows), return_exceptions=True)

    def _readable(self) -> None:
        for _ in range(BATCH):
            try:
                data, sender = self._sock.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                continue  # ICMP about an earlier one
            # The first to send from the program's address is the program.
            if sender[0] == self._program and self._peer in (None, sender[:2]):
                self._peer = sender[:2]
                self._forward(data)

    def _forward(self, data: bytes) -> None:
        datagram = decode_datagram(data)
        if datagram is None:
            return
        host, port, payload = datagram
        try:
            target = make_target(host, port)
        except ValueError:
            return
        flow = self._flows.get(target)
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                _, oldest = self._flows.popitem(last=False)
                oldest.task.cancel()
            flow = self._flows[target] = _Flow(
                self._link, target, self._deliver, lambda ended: self._ended(target, ended)
            )
        self._flows.move_to_end(target)
        flow.send(payload)

    def _deliver(self, host: str, port: int, payloads: list[bytes]) -> None:
        if self._peer is None or self._sock.fileno() < 0:
            return
        for payload in payloads:
            try:
                self._sock.sendto(encode_datagram(host, port, payload), self._peer)
            except OSError:
                continue  # full, or the program has gone: UDP may lose

    def _ended(self, target: Target, flow: _Flow) -> None:
        if self._flows.get(target) is flow:
            del self._flows[target]


class _Flow:
    """Datagrams to one target: the handler of its tunnel, and the task that opens and ends it."""

    def __init__(
        self,
        link: GatewayLink,
        target: Target,
        deliver: Callable[[str, int, list[bytes]], None],
        ended: Callable[[_Flow], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._target = target
        self._deliver = deliver
        self._source = str(target.host), target.port
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._capsules = UdpCapsules()
        self._tunnel: HttpTunnel | None = None
        self._over = asyncio.Event()
        self._moved_at = self._loop.time()
        self.task = asyncio.create_task(self._run(link, ended), name="qvpn UDP flow")

    def send(self, payload: bytes) -> None:
        """Send now, or when the flow is open."""
        self._moved_at = self._loop.time()
        if self._tunnel is not None:
            self._tunnel.send_packets([payload])
        else:
            self._waiting.append(payload)

    async def _run(self, link: GatewayLink, ended: Callable[[_Flow], None]) -> None:
        tunnel: HttpTunnel | None = None
        try:
            tunnel = await link.open_udp(self._target, self)
            hop = next_hop(tunnel.response_headers)
            if hop is not None:
                self._learn_source(hop)
            self._tunnel = tunnel
            if self._waiting:
                tunnel.send_packets(list(self._waiting))
                self._waiting.clear()
            left = IDLE
            while left > 0 and not self._over.is_set():
                await _wait(self._over, left)
                left = self._moved_at + IDLE - self._loop.time()
        except ServiceRefused:
            await asyncio.sleep(REFUSED)
        finally:
            if tunnel is not None:
                tunnel.close()
            ended(self)

    def _learn_source(self, hop: str) -> None:
        try:
            source = parse_authority(hop)
        except ValueError:
            return
        self._source = str(source.host), source.port

    # From the tunnel

    def capsule_data(self, data: bytes) -> None:
        try:
            payloads = self._capsules.receive(data)
        except CapsuleError:
            self._over.set()
        else:
            if payloads:
                self.packets(payloads)

    def capsule_end(self) -> None:
        self._over.set()

    def packets(self, packets: list[bytes]) -> None:
        self._moved_at = self._loop.time()
        self._deliver(*self._source, packets)

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        """Dropped and counted by the tunnel; a program that uses SOCKS cannot be told."""

    def mtu_changed(self, mtu: int) -> None:
        """Nobody to tell."""

    def closed(self, error: QvpnError | None) -> None:
        self._over.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
