"""A client's and a gateway's datapath over real QUIC on loopback, each native or the reference.

Devices are SOCK_SEQPACKET socket pairs whose packets have a `virtio_net_hdr`, as those of a TUN do;
a relay between the two ends can lose, repeat, reorder and break what passes. Packets are of a
protocol that nobody joins to super-packets, so that what leaves one device is what must enter the
other.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from qvpn_core.datapath import engine as engine_module
from qvpn_core.datapath.aioquic import AioquicDatapath
from qvpn_core.datapath.interface import BAD_SOURCE, Datapath
from qvpn_core.datapath.native import NativeDatapath
from qvpn_core.errors import TunUnavailable
from qvpn_core.packet import parse
from qvpn_core.transport import settings
from qvpn_core.transport.http3 import Http3Tunnel
from qvpn_core.transport.interface import HttpTunnel, IncomingRequest, Request
from qvpn_core.transport.listen import QuicListener
from qvpn_core.transport.reach import connect
from qvpn_core.transport.trust import Trust
from qvpn_server.destinations import Destinations, Verdict
from qvpn_server.forwarding import Forwarder
from qvpn_server.offload import Offload
from qvpn_server.registry.records import DevicePolicy
from qvpn_server.sessions import Session, SessionTable
from tests.unit.datapath.test_aioquic_datapath import v4, v6
from tests.unit.transport.helpers import Changes, Identity, RecordingHandler, in_loop, make_identity

OWN_V4 = ipaddress.ip_address("10.9.0.2").packed
OWN_V6 = ipaddress.ip_address("fd00:9::2").packed
SITE_V4 = ipaddress.ip_address("198.51.100.7").packed
SITE_V6 = ipaddress.ip_address("2001:db8::7").packed
BARRED_V4 = ipaddress.ip_address("203.0.113.9").packed
GATEWAY = {4: ipaddress.ip_address("10.9.0.1").packed, 6: ipaddress.ip_address("fd00:9::1").packed}
PLAIN = 253  # RFC 3692: a protocol that no kernel knows
HEADER = bytes(10)

needs_engine = pytest.mark.skipif(
    engine_module.qvpn_datapath is None, reason="the native datapath is not built (make datapath)"
)


class HeaderDevice:
    """A TUN's stand-in; `kernel` is the side that the kernel would be on."""

    def __init__(self) -> None:
        self._sock, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self._sock, self.kernel):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.changes = Changes()
        self.delivered: list[bytes] = []
        asyncio.get_running_loop().add_reader(self.kernel.fileno(), self._deliver)

    def _deliver(self) -> None:
        try:
            while True:
                data = self.kernel.recv(1 << 17)
                assert data[:10] == HEADER, "nothing of this is joined"
                self.delivered.append(data[10:])
        except BlockingIOError:
            pass
        self.changes.note()

    def emit(self, *packets: bytes) -> None:
        """Packets that the kernel routes into the device."""
        for packet in packets:
            self.kernel.send(HEADER + packet)

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        await self.changes.until(condition, seconds)

    async def changes_until(self, condition: Callable[[], bool]) -> None:
        """The same for what no packet announces."""
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise TimeoutError

    def fileno(self) -> int:
        return self._sock.fileno()

    def set_offload(self, on: bool) -> bool:
        del on
        return True

    def read_batch(self, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        while len(packets) < limit:
            try:
                data = self._sock.recv(1 << 17)
            except BlockingIOError:
                break
            if not data:
                raise TunUnavailable("the device is gone", "start the tunnel again")
            packets.append(data[10:])
        return packets

    def write_batch(self, packets: Iterable[bytes]) -> int:
        return sum(self._sock.send(HEADER + packet) > 0 for packet in packets)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.kernel.fileno())
        self._sock.close()
        self.kernel.close()


class Relay:
    """Between the two ends, on loopback; `hook` says what becomes of a datagram.

    `ecn` says with which ECN codepoint a datagram goes on, None for not at all, by the one that it
    came with. `marks` counts those by where they came from.
    """

    def __init__(self, gateway_port: int) -> None:
        loop = asyncio.get_running_loop()
        self._towards_client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._towards_client.bind(("127.0.0.1", 0))
        self._towards_gateway = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._towards_gateway.connect(("127.0.0.1", gateway_port))
        self._client: tuple[str, int] | None = None
        self.hook: Callable[[bytes], list[bytes]] = lambda data: [data]
        self.ecn: Callable[[int], int | None] = lambda mark: 0
        self.marks: Counter[str] = Counter()
        for sock, pump in (
            (self._towards_client, self._from_client),
            (self._towards_gateway, self._from_gateway),
        ):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            loop.add_reader(sock.fileno(), pump)

    @property
    def port(self) -> int:
        return int(self._towards_client.getsockname()[1])

    def _from_client(self) -> None:
        try:
            while True:
                data, ancillary, _, self._client = self._towards_client.recvmsg(1 << 16, 64)
                self._pass("client", data, ancillary, self._towards_gateway, None)
        except OSError:
            pass

    def _from_gateway(self) -> None:
        try:
            while True:
                data, ancillary, _, _ = self._towards_gateway.recvmsg(1 << 16, 64)
                if self._client is not None:
                    self._pass("gateway", data, ancillary, self._towards_client, self._client)
        except OSError:
            pass

    def _pass(
        self,
        whence: str,
        data: bytes,
        ancillary: list[tuple[int, int, bytes]],
        out: socket.socket,
        to: tuple[str, int] | None,
    ) -> None:
        came = ancillary[0][2][0] & 3 if ancillary else 0
        self.marks[whence] += came != 0
        mark = self.ecn(came)
        if mark is None:
            return
        tos = [(socket.IPPROTO_IP, socket.IP_TOS, mark.to_bytes(4, sys.byteorder))]
        for each in self.hook(data):
            out.sendmsg([each], tos if mark else [], 0, *([] if to is None else [to]))

    def close(self) -> None:
        for sock in (self._towards_client, self._towards_gateway):
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()


class GatewayEnd:
    """As `qvpn_server.gateway` puts it together, for one device."""

    def __init__(self, *, native: bool) -> None:
        self.device = HeaderDevice()
        self.handler = RecordingHandler()
        self.sessions = SessionTable()
        self._native = native
        self.forwarder = Forwarder(
            sessions=self.sessions, own=GATEWAY, write_tun=self.device.write_batch
        )
        self.session: Session | None = None
        self.offload = Offload(self.device, self.sessions, self._from_tun, self._pump, lambda: None)  # type: ignore[arg-type]  # a device that is as good as a TUN
        if not (native and self.offload.start()):
            self._pump()

    def _pump(self) -> None:
        asyncio.get_running_loop().add_reader(self.device.fileno(), self._readable)

    def _readable(self) -> None:
        self._from_tun(self.device.read_batch(64))

    def _from_tun(self, packets: list[bytes]) -> None:
        self.forwarder.from_tun(packets, asyncio.get_running_loop().time())

    def on_request(self, request: IncomingRequest) -> None:
        # A handler of a device, as far as packets go.
        handler = self.handler
        tunnel = request.accept(handler)
        site = (ipaddress.ip_network("198.51.100.0/24"), Verdict.FORWARD)
        site6 = (ipaddress.ip_network("2001:db8::/32"), Verdict.FORWARD)
        barred = (ipaddress.ip_network("203.0.113.0/24"), Verdict.PROHIBITED)
        session = self.session = Session(
            1,
            "device",
            (ipaddress.ip_address(OWN_V4), ipaddress.ip_address(OWN_V6)),
            tunnel,
            since=0.0,
            mtu=tunnel.mtu,
            groups=(),
            policy=DevicePolicy(routes=(), destinations=(), dns=()),
            destinations=Destinations([site, site6, barred]),
            tell=lambda before: None,
        )
        clock = asyncio.get_running_loop().time
        handler.packets = lambda packets: self.forwarder.from_device(  # type: ignore[method-assign]
            session, packets, clock()
        )

        def mtu_changed(mtu: int) -> None:
            session.mtu = mtu

        handler.mtu_changed = mtu_changed  # type: ignore[method-assign]
        handler.capsule_end = tunnel.close  # type: ignore[method-assign]
        self.sessions.add(session)
        self.offload.carry(session)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.device.fileno())
        self.device.close()


class ClientHandler(RecordingHandler):
    """Hands packets to the datapath, as a client's link does."""

    datapath: Datapath

    def packets(self, packets: list[bytes]) -> None:
        self.datapath.packets(packets)

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        self.datapath.packet_too_big(packet, mtu)


class Pair:
    """Both ends, connected."""

    device: HeaderDevice
    datapath: Datapath
    tunnel: HttpTunnel
    gateway: GatewayEnd
    relay: Relay
    handler: ClientHandler

    async def passes(self, *, there: bytes, back: bytes) -> None:
        """A packet each way arrives."""
        device, far = self.device, self.gateway.device
        before, far_before = device.delivered.count(back), far.delivered.count(there)
        device.emit(there)
        await far.until(lambda: far.delivered.count(there) > far_before)
        far.emit(back)
        await device.until(lambda: device.delivered.count(back) > before)


@asynccontextmanager
async def pair(identity: Identity, client: str, gateway: str) -> AsyncIterator[Pair]:
    made = Pair()
    made.gateway = GatewayEnd(native=gateway == "native")
    listener = await QuicListener.start(
        [("127.0.0.1", 0)],
        certificate=identity.certificate_file,
        private_key=identity.key_file,
        on_request=made.gateway.on_request,
    )

    class Both:
        quic = listener

    made.relay = Relay(listener.addresses[0][1])
    made.device = HeaderDevice()
    made.handler = ClientHandler()
    request = Request("CONNECT", "https", "gateway", "/", "connect-ip")
    with made.gateway.offload.serving(Both()):  # type: ignore[arg-type]  # its QUIC half
        made.tunnel = await connect(
            "127.0.0.1",
            made.relay.port,
            trust=Trust(pins=(identity.pin,)),
            request=request,
            handler=made.handler,
        )
        make = NativeDatapath if client == "native" else AioquicDatapath
        made.datapath = make(made.device, made.tunnel)
        made.handler.datapath = made.datapath
        made.datapath.start([OWN_V4, OWN_V6])
        assert made.datapath.name == client
        try:
            yield made
        finally:
            made.datapath.close()
            made.tunnel.close()
            await asyncio.sleep(0.05)
            await listener.close()
            made.relay.close()
            made.device.close()
    made.gateway.close()


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("identity"), "127.0.0.1")


PAIRS = [
    pytest.param(
        client,
        gateway,
        id=f"{client}-{gateway}",
        marks=[needs_engine] if "native" in (client, gateway) else [],
    )
    for client in ("native", "aioquic")
    for gateway in ("native", "aioquic")
]
NATIVE = [each for each in PAIRS if each.marks]


def over(
    pairs: list[Any],
) -> Callable[[Callable[[Pair], Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Run a case over pairs of datapaths."""

    def decorate(case: Callable[[Pair], Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @pytest.mark.parametrize(("client", "gateway"), pairs)
        @in_loop
        async def run(identity: Identity, client: str, gateway: str) -> None:
            async with pair(identity, client, gateway) as made:
                await case(made)

        run.__name__ = case.__name__
        run.__doc__ = case.__doc__
        return run

    return decorate


def there(serial: int, size: int = 100) -> bytes:
    """A packet to a site: IPv6 ones among IPv4 ones."""
    if serial % 3:
        return _marked(v4(OWN_V4, SITE_V4, size, PLAIN), 20, serial)
    return _marked(v6(OWN_V6, SITE_V6, size, PLAIN), 40, serial)


def back(serial: int, size: int = 100) -> bytes:
    """A packet from a site."""
    if serial % 3:
        return _marked(v4(SITE_V4, OWN_V4, size, PLAIN), 20, serial)
    return _marked(v6(SITE_V6, OWN_V6, size, PLAIN), 40, serial)


def _marked(packet: bytes, header: int, serial: int) -> bytes:
    mark = serial.to_bytes(4, "big")[-max(0, len(packet) - header) :]
    return packet[:header] + mark + packet[header + len(mark) :]


async def exchange(
    made: Pair, count: int, *, size: int = 300, first: int = 0, ordered: bool = True
) -> None:
    """`count` packets each way, in portions that no queue drops; all arrive, each flow in order.

    Where some go by the QUIC stack and later ones do not, they may overtake: not `ordered`.
    """
    device, far = made.device, made.gateway.device
    start, far_start = len(device.delivered), len(far.delivered)
    for begin in range(first, first + count, 16):
        serials = range(begin, min(begin + 16, first + count))
        device.emit(*(there(serial, size) for serial in serials))
        far.emit(*(back(serial, size) for serial in serials))
        done = serials.stop - first
        await far.until(lambda done=done: len(far.delivered) - far_start >= done)
        await device.until(lambda done=done: len(device.delivered) - start >= done)
    serials = range(first, first + count)
    for got, wanted in (
        (far.delivered[far_start:], [there(serial, size) for serial in serials]),
        (device.delivered[start:], [back(serial, size) for serial in serials]),
    ):
        assert sorted(got) == sorted(wanted)
        for version in (0x45, 0x60) if ordered else ():  # a flow of each; queues are by flow
            assert [each for each in got if each[0] == version] == [
                each for each in wanted if each[0] == version
            ]


@over(PAIRS)
async def test_packets_arrive_whole_and_in_order_both_ways(made: Pair) -> None:
    await exchange(made, 200)
    counters = made.tunnel.counters
    assert counters.tx_packets == counters.rx_packets == 200
    assert counters.tx_bytes == counters.rx_bytes == 200 * 300
    assert made.gateway.session is not None
    counters = made.gateway.session.tunnel.counters
    assert counters.tx_packets == counters.rx_packets == 200
    assert made.datapath.counters.dropped == {}


BOTH_NATIVE = [each for each in PAIRS if each.values == ("native", "native")]


async def marked(made: Pair, count: int, *, first: int, ordered: bool = True) -> Counter[str]:
    """Packets that each end marked among those of an exchange, and what goes along with them."""
    before = made.relay.marks.copy()
    await exchange(made, count, first=first, ordered=ordered)
    await asyncio.sleep(0.1)  # the last are acknowledged
    return made.relay.marks - before


async def marking_goes_on(made: Pair) -> None:
    await marked(made, 160, first=0)
    later = await marked(made, 160, first=160)
    # Small packets share one: there are fewer than 160.
    assert later["client"] >= 10
    assert later["gateway"] >= 10


@over(BOTH_NATIVE)
async def test_marks_go_on_where_the_path_carries_them(made: Pair) -> None:
    made.relay.ecn = lambda mark: mark
    await marking_goes_on(made)


@over(BOTH_NATIVE)
async def test_congestion_that_the_path_reports_does_not_end_marking(made: Pair) -> None:
    coin = random.Random(9000)
    made.relay.ecn = lambda mark: 3 if mark and coin.random() < 0.2 else mark
    await marking_goes_on(made)


@over(NATIVE)
async def test_marks_end_where_the_path_clears_them_or_the_peer_does_not_count(made: Pair) -> None:
    await marked(made, 16, first=0)
    assert made.relay.marks
    first = 16
    while await marked(made, 64, first=first):
        first += 64
        assert first < 1000, "marking goes on"
    assert not await marked(made, 64, first=first + 64)


@over(NATIVE)
async def test_a_path_that_drops_marked_packets_is_used_without_marks(made: Pair) -> None:
    made.relay.ecn = lambda mark: None if mark else 0
    device, far = made.device, made.gateway.device
    began = time.monotonic()
    for serial in range(2000):
        if device.delivered and far.delivered:
            break
        device.emit(there(serial))
        far.emit(back(serial))
        await asyncio.sleep(0.01)
    assert time.monotonic() - began < 15
    await asyncio.sleep(0.5)
    device.delivered.clear()
    far.delivered.clear()
    assert not await marked(made, 64, first=5000)


@over(PAIRS)
async def test_every_size_up_to_the_mtu(made: Pair) -> None:
    await made.passes(there=there(1, 60), back=back(1, 60))
    mtu = made.tunnel.mtu
    for size in (44, 45, 63, 64, 65, 127, 128, 600, mtu // 2, mtu - 2, mtu - 1, mtu):
        await made.passes(there=there(1, size), back=back(1, size))
        await made.passes(there=there(3, size), back=back(3, size))


@over(PAIRS)
async def test_too_large_packets_are_answered_at_both_ends(made: Pair) -> None:
    mtu = made.tunnel.mtu
    made.device.emit(there(1, mtu + 1))
    await made.device.until(lambda: made.device.delivered)
    (answer,) = made.device.delivered
    assert answer[20:22] == bytes((3, 4))
    assert int.from_bytes(answer[26:28], "big") == mtu
    far = made.gateway.device
    assert made.gateway.session is not None
    far.emit(back(3, made.gateway.session.tunnel.mtu + 1))
    await far.until(lambda: far.delivered)
    (answer,) = far.delivered
    assert answer[40:42] == bytes((2, 0))
    await exchange(made, 16)


@over(PAIRS)
async def test_packets_of_other_sources_do_not_leave(made: Pair) -> None:
    made.device.emit(v4(SITE_V4, OWN_V4, 60, PLAIN), there(1))
    far = made.gateway.device
    await far.until(lambda: far.delivered)
    assert far.delivered == [there(1)]
    assert made.datapath.counters.dropped == {BAD_SOURCE: 1}


@over(PAIRS)
async def test_the_gateway_refuses_what_a_device_must_not_send(made: Pair) -> None:
    """A spoofed source, and a destination that is not allowed: counted, and answered."""
    made.datapath.set_addresses([OWN_V4, OWN_V6, SITE_V4])
    far = made.gateway.device
    spoofed = v4(SITE_V4, SITE_V4, 60, PLAIN)
    barred = v4(OWN_V4, BARRED_V4, 60, PLAIN)
    made.device.emit(spoofed, barred, there(1))
    await far.until(lambda: far.delivered)
    await made.device.until(lambda: made.device.delivered)
    assert far.delivered == [there(1)]
    session = made.gateway.session
    assert session is not None
    assert session.drops == {"bad-source": 1, "prohibited": 1}
    answer = parse(made.device.delivered[0])
    assert answer.protocol == 1
    assert answer.source == GATEWAY[4]


@over(PAIRS)
async def test_rules_can_change_while_packets_flow(made: Pair) -> None:
    await exchange(made, 16)
    session = made.gateway.session
    assert session is not None
    session.destinations = Destinations([(ipaddress.ip_network("203.0.113.0/24"), Verdict.FORWARD)])
    made.gateway.offload.follow(session)
    far = made.gateway.device
    before = len(far.delivered)
    allowed = v4(OWN_V4, BARRED_V4, 60, PLAIN)
    made.device.emit(there(1), allowed)
    await far.until(lambda: len(far.delivered) > before)
    assert far.delivered[before:] == [allowed]


@over(PAIRS)
async def test_a_packet_for_nobody_is_answered(made: Pair) -> None:
    far = made.gateway.device
    far.emit(v4(SITE_V4, ipaddress.ip_address("10.9.0.77").packed, 60, PLAIN))
    await far.until(lambda: far.delivered)
    assert far.delivered[0][20:22] == bytes((3, 1))
    assert made.gateway.forwarder.drops == {"no-session": 1}


@over(PAIRS)
async def test_capsules_travel_beside_packets(made: Pair) -> None:
    """Streams stay the QUIC stack's, whatever the engine does with the same packet numbers."""
    data = random.Random(1).randbytes(200_000)
    gateway = made.gateway
    assert gateway.session is not None
    for start in range(0, len(data), 20_000):
        made.tunnel.send_capsules(data[start : start + 20_000])
        gateway.session.tunnel.send_capsules(data[start : start + 20_000])
        await exchange(made, 16, first=start)
    await gateway.handler.until(lambda: len(gateway.handler.data) == len(data))
    await made.handler.until(lambda: len(made.handler.data) == len(data))
    assert gateway.handler.data == made.handler.data == data


@over(NATIVE)
async def test_keys_are_updated_in_both_directions(made: Pair) -> None:
    for number in range(6):
        end = made.tunnel if number % 2 else made.gateway.session.tunnel  # type: ignore[union-attr]
        assert isinstance(end, Http3Tunnel)
        quic = end._connection.quic
        phase = quic._cryptos[engine_epoch()].send.key_phase
        if quic.carried is not None:
            quic.update_keys()
        else:
            quic.request_key_update()
            end._connection.keep_alive()
        await exchange(made, 64, first=number * 64, ordered=False)
        assert quic._cryptos[engine_epoch()].send.key_phase != phase


@needs_engine
@in_loop
async def test_a_packet_under_other_keys_is_acknowledged_under_them(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9001 section 6.2; the engine acknowledges as soon as it knows of a packet."""
    told: list[str] = []
    session = engine_module._Session

    def noted(name: str, act: Callable[..., None]) -> Callable[..., None]:
        def note(*arguments: Any, **options: Any) -> None:
            told.append(name)
            act(*arguments, **options)

        return note

    for name in ("received", "set_keys"):
        monkeypatch.setattr(session, name, noted(name, getattr(session, name)))
    async with pair(identity, "aioquic", "native") as made:
        assert isinstance(made.tunnel, Http3Tunnel)
        await exchange(made, 8)
        known = -1
        while known < len(told):  # what is under way by itself has arrived
            known = len(told)
            await asyncio.sleep(0.3)
        told.clear()
        made.tunnel._connection.quic.request_key_update()
        made.tunnel._connection.keep_alive()
        await exchange(made, 8, first=8)
    assert told[:2] == ["set_keys", "received"]


def engine_epoch() -> Any:
    from aioquic import tls

    return tls.Epoch.ONE_RTT


@needs_engine
@pytest.mark.parametrize("gateway", ["native", "aioquic"])
@in_loop
async def test_keys_are_updated_before_their_limit(
    identity: Identity, gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hasty(engine_module.NativeEngine):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, key_limit=30)

    monkeypatch.setattr("qvpn_core.datapath.native.NativeEngine", Hasty)
    async with pair(identity, "native", gateway) as made:
        assert isinstance(made.tunnel, Http3Tunnel)
        quic = made.tunnel._connection.quic
        phases = set()
        for number in range(12):
            await exchange(made, 48, first=number * 48, ordered=False)
            phases.add(quic._cryptos[engine_epoch()].send.secret)
        assert len(phases) >= 3


@needs_engine
@in_loop
async def test_marks_go_on_under_other_keys(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first packets under them are opened by the QUIC stack, which sees no marks."""

    class Hasty(engine_module.NativeEngine):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, key_limit=30)

    monkeypatch.setattr("qvpn_core.datapath.native.NativeEngine", Hasty)
    async with pair(identity, "native", "native") as made:
        made.relay.ecn = lambda mark: mark
        assert isinstance(made.tunnel, Http3Tunnel)
        quic = made.tunnel._connection.quic
        phases = set()
        for number in range(8):
            later = await marked(made, 48, first=number * 48, ordered=False)
            phases.add(quic._cryptos[engine_epoch()].send.secret)
        assert len(phases) >= 3
        assert later["client"]
        assert later["gateway"]


@over(NATIVE)
async def test_the_session_goes_on_from_another_socket(made: Pair) -> None:
    await exchange(made, 32)
    assert await made.tunnel.rebind()
    await exchange(made, 32, first=1000, ordered=False)
    await exchange(made, 320, first=2000)
    made.tunnel.hold()
    made.device.emit(there(1))
    assert await made.tunnel.rebind()
    far = made.gateway.device
    await far.until(lambda: far.delivered[-1] == there(1))


@over(NATIVE)
async def test_after_a_defect_the_reference_goes_on(made: Pair) -> None:
    """Of either engine; the connection, and what waits for an acknowledgement, stay."""
    await exchange(made, 64)
    if isinstance(made.datapath, NativeDatapath):
        assert made.datapath._engine is not None
        made.datapath._engine.fail()
        await made.device.changes_until(lambda: made.datapath.name == "aioquic")
        await exchange(made, 64, first=100)
    if made.gateway.offload._engine is not None:
        made.gateway.offload._engine.fail()
        await made.device.changes_until(lambda: made.gateway.offload._engine is None)
        assert made.gateway.session is not None
        assert not made.gateway.session.tunnel.carried
        await exchange(made, 64, first=200)
    assert made.handler.closings == []
    made.tunnel.send_capsules(b"still here")
    await made.gateway.handler.until(lambda: made.gateway.handler.data == b"still here")


@over(NATIVE)
async def test_a_tunnel_can_be_carried_again_and_again(made: Pair) -> None:
    for number in range(5):
        await exchange(made, 48, first=number * 1000)
        made.datapath.close()
        made.datapath = type(made.datapath)(made.device, made.tunnel)
        made.handler.datapath = made.datapath
        made.datapath.start([OWN_V4, OWN_V6])
    counters = made.tunnel.counters
    assert counters.tx_packets == counters.rx_packets == 5 * 48


@over(NATIVE)
async def test_what_is_on_its_way_up_when_a_connection_is_taken_back_is_no_duplicate(
    made: Pair,
) -> None:
    """The end of the tunnel takes it back; the end of the connection was handed up meanwhile."""
    assert made.gateway.session is not None
    far = made.gateway.session.tunnel
    assert isinstance(far, Http3Tunnel)
    connection = far._connection
    await exchange(made, 32)
    held: list[bytes] = []

    def hold(data: bytes) -> list[bytes]:
        held.append(data)
        return []

    made.relay.hook = hold
    made.tunnel.close()
    await made.device.changes_until(lambda: len(held) >= 2)
    await asyncio.sleep(0.1)  # an acknowledgement, which nobody takes up, may be among them
    made.relay.hook = lambda data: [data]
    engine = made.gateway.offload._engine
    if engine is not None:
        engine._engine = LateTaker(engine._engine, held[-1:], made.relay._towards_gateway)
        for data in held[:-1]:
            made.relay._towards_gateway.send(data)
    else:
        for data in held:
            made.relay._towards_gateway.send(data)
    await made.device.changes_until(lambda: connection.quic.ended)


class LateTaker:
    """An engine that hands up more packets between one `take` and what is done with it."""

    def __init__(self, engine: Any, packets: list[bytes], sock: socket.socket) -> None:
        self._engine = engine
        self._packets = packets
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def take(self) -> list[Any]:
        items: list[Any] = self._engine.take()
        for packet in self._packets:
            self._sock.send(packet)
        self._packets = []
        time.sleep(0.1)  # the engine's thread takes them
        return items


# A bad network


@over(NATIVE)
async def test_what_is_repeated_arrives_once(made: Pair) -> None:
    """Every packet three times, and old ones again later: replays are nothing."""
    kept: list[bytes] = []

    def repeat(data: bytes) -> list[bytes]:
        kept.append(data)
        again = kept[len(kept) // 2]
        return [data, data, again, data]

    made.relay.hook = repeat
    await exchange(made, 320)
    made.relay.hook = lambda data: [data]
    await exchange(made, 16, first=1000)


@over(NATIVE)
async def test_broken_and_forged_packets_harm_nobody(made: Pair) -> None:
    dice = random.Random(2)

    def break_some(data: bytes) -> list[bytes]:
        at = dice.randrange(len(data))
        broken = data[:at] + bytes((data[at] ^ 1 << dice.randrange(8),)) + data[at + 1 :]
        cut = data[: dice.randrange(len(data))]
        forged = data[:9] + dice.randbytes(dice.randrange(1200))
        return [broken, cut, forged, data]

    made.relay.hook = break_some
    await exchange(made, 320)


@over(NATIVE)
async def test_packets_overtake_and_are_lost(made: Pair) -> None:
    """What arrives is intact, nothing twice, and the session lives."""
    dice = random.Random(3)
    held: list[bytes] = []

    def disturb(data: bytes) -> list[bytes]:
        held.append(data)
        if len(held) < 8:
            return []
        dice.shuffle(held)
        out = [each for each in held if dice.random() > 0.1]
        held.clear()
        return out

    device, far = made.device, made.gateway.device
    made.relay.hook = disturb
    for begin in range(0, 2000, 20):
        device.emit(*(there(serial, 1000) for serial in range(begin, begin + 20)))
        far.emit(*(back(serial, 1000) for serial in range(begin, begin + 20)))
        await asyncio.sleep(0.002)
    made.relay.hook = lambda data: [data]
    await made.passes(there=there(99_991), back=back(99_991))
    sent = {there(serial, 1000) for serial in range(2000)} | {there(99_991)}
    for got, wanted in ((far.delivered, sent),):
        assert len(set(got)) == len(got)
        assert set(got) <= wanted
        assert len(got) > 1000
    assert made.tunnel.counters.lost_packets > 0 or not made.tunnel.carried
    assert made.handler.closings == []


@needs_engine
@pytest.mark.parametrize(("client", "gateway"), NATIVE)
@in_loop
async def test_packets_keep_a_session_alive_and_silence_ends_it(
    identity: Identity, client: str, gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "IDLE_TIMEOUT", 2.5)
    async with pair(identity, client, gateway) as made:
        for number in range(12):
            await made.passes(there=there(number), back=back(number))
            await asyncio.sleep(0.3)
        assert made.handler.closings == []
        made.relay.hook = lambda data: []
        await made.handler.until(lambda: made.handler.closings)
        await made.gateway.handler.until(lambda: made.gateway.handler.closings)
