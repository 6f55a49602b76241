"""HTTP/2 without a socket: flow control, head drop, and peers that mean harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamReset
from h2.settings import SettingCodes, Settings
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from qvpn_core.transport import tls_settings
from qvpn_core.transport.http2 import Http2Connection
from qvpn_core.transport.interface import IncomingRequest
from qvpn_core.transport.queue import QUEUE_PACKETS, QUEUE_SECONDS
from tests.unit.transport.helpers import AcceptingServer
from tests.unit.transport.peers import ip_packet

GET = [(":method", "GET"), (":scheme", "https"), (":authority", "gw:8443"), (":path", "/")]
CONNECT = [
    (":method", "CONNECT"),
    (":protocol", "connect-ip"),
    (":scheme", "https"),
    (":authority", "gw"),
    (":path", "/.well-known/masque/ip/*/*/"),
]


class FakeCarrier:
    """A carrier with a clock that a test moves; nothing is sent before it is taken."""

    peer = ("192.0.2.1", 4242)
    rtt = silence = 0.0

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wake(self) -> None:
        pass

    def soon(self, callback: Callable[..., object], *arguments: Any) -> object:
        return callback(*arguments)

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        return bytes(length)


class World:
    """Our gateway's end, and a peer made of h2 alone that says what a test wants."""

    def __init__(
        self, on_request: Callable[[IncomingRequest], None] | None = None, window: int = 65535
    ) -> None:
        self.carrier = FakeCarrier()
        self.server = AcceptingServer()
        self.ours = Http2Connection(self.carrier, on_request or self.server)
        self.peer = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        values = {SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.peer.local_settings = Settings(client=True, initial_values=values)
        self.peer.initiate_connection()
        self.events: list[Event] = []
        self.exchange()

    def exchange(self) -> None:
        """Carry bytes both ways until there are none."""
        while (mine := self.peer.data_to_send()) or (theirs := self.take()):
            if mine:
                self.ours.receive(mine)
            else:
                self.events += self.peer.receive_data(theirs)

    def take(self, most: int = 1 << 30) -> bytes:
        """What our end sends, at most so many bytes and a chunk."""
        data = b""
        while len(data) < most and (more := self.ours.pull()):
            data += more
        return data

    def open(self) -> int:
        """A tunnel; returns its stream."""
        stream = self.peer.get_next_available_stream_id()
        self.peer.send_headers(stream, CONNECT)
        self.exchange()
        return stream

    def raw(self, *frames: Frame) -> None:
        """Send frames of one's own."""
        self.ours.receive(b"".join(frame.serialize() for frame in frames))

    def farewell(self) -> int | None:
        """The error code of GOAWAY, once our end has said it."""
        self.exchange()
        ends = [event for event in self.events if isinstance(event, ConnectionTerminated)]
        return None if not ends else int(ends[-1].error_code or 0)


def data_of(world: World) -> bytes:
    return b"".join(event.data or b"" for event in world.events if isinstance(event, DataReceived))


def test_extended_connect_is_announced_and_answered() -> None:
    world = World()
    assert world.peer.remote_settings.enable_connect_protocol == 1
    world.open()
    [answer] = [event for event in world.events if isinstance(event, ResponseReceived)]
    assert dict(answer.headers or []) == {":status": "200", "capsule-protocol": "?1"}


def test_a_page_names_http3_at_the_port_that_was_asked() -> None:
    world = World(lambda incoming: incoming.respond(200, (("content-length", "4"),), b"page"))
    stream = world.peer.get_next_available_stream_id()
    world.peer.send_headers(stream, GET, end_stream=True)
    world.exchange()
    [answer] = [event for event in world.events if isinstance(event, ResponseReceived)]
    assert dict(answer.headers or [])["alt-svc"] == 'h3=":8443"; ma=86400'
    assert data_of(world) == b"page"


def test_packets_that_waited_too_long_give_way_to_fresh_ones() -> None:
    world = World()
    world.open()
    tunnel = world.server.tunnels[0]
    world.carrier.time += 1
    tunnel.send_packets([ip_packet(1000)] * 3)
    world.carrier.time += QUEUE_SECONDS * 2
    fresh = ip_packet(1000, 7)
    tunnel.send_packets([fresh])
    world.exchange()
    assert data_of(world).endswith(fresh)
    assert tunnel.counters.dropped == {"queue-expired": 3}
    assert tunnel.counters.tx_packets == 1


def test_a_window_of_nothing_costs_packets_and_no_memory() -> None:
    world = World(window=0)
    stream = world.open()
    tunnel = world.server.tunnels[0]
    for number in range(3 * QUEUE_PACKETS):
        tunnel.send_packets([ip_packet(100, number)])
    world.exchange()
    assert data_of(world) == b""
    assert tunnel.counters.dropped == {"queue-full": 2 * QUEUE_PACKETS}
    world.peer.increment_flow_control_window(1 << 20, stream)
    world.peer.increment_flow_control_window(1 << 20)
    world.exchange()
    assert tunnel.counters.tx_packets == QUEUE_PACKETS


def test_a_packet_is_never_cut_by_a_window() -> None:
    world = World(window=1000)
    stream = world.open()
    tunnel = world.server.tunnels[0]
    tunnel.send_packets([ip_packet(600, 1), ip_packet(600, 2)])
    world.exchange()
    assert len(data_of(world)) == 604
    world.peer.increment_flow_control_window(1000, stream)
    world.exchange()
    assert len(data_of(world)) == 2 * 604


def test_capsules_that_nobody_takes_end_the_connection() -> None:
    world = World(window=0)
    world.open()
    tunnel, handler = world.server.tunnels[0], world.server.handlers[0]
    for _ in range(3):
        tunnel.send_capsules(bytes(tls_settings.MAX_BUFFERED // 2))
    assert handler.closings
    assert "does not take" in str(handler.closings[0])
    assert world.farewell() == ErrorCodes.ENHANCE_YOUR_CALM


def test_capsules_are_not_held_up_by_packets() -> None:
    world = World()
    world.open()
    tunnel = world.server.tunnels[0]
    tunnel.send_packets([ip_packet(1400)] * 40)
    tunnel.send_capsules(b"\x2a\x03abc")
    first = world.ours.pull()
    assert b"\x2a\x03abc" in first


def test_large_answers_take_turns_and_keep_to_the_window() -> None:
    pages = {"/a": b"a" * 100_000, "/b": b"b" * 100_000}
    world = World(lambda incoming: incoming.respond(200, (), pages[incoming.request.path]))
    for path in pages:
        stream = world.peer.get_next_available_stream_id()
        world.peer.send_headers(stream, [*GET[:3], (":path", path)], end_stream=True)
    world.exchange()
    got = data_of(world)
    assert len(got) == 65535, "the window of the connection"
    assert {got[:1], got[20_000:20_001]} == {b"a", b"b"}


def test_who_goes_on_sending_after_the_answer_is_told_to_stop() -> None:
    world = World(lambda incoming: incoming.respond(405))
    stream = world.peer.get_next_available_stream_id()
    world.peer.send_headers(stream, [(":method", "POST"), *GET[1:]])
    world.exchange()
    [reset] = [event for event in world.events if isinstance(event, StreamReset)]
    assert (reset.stream_id, reset.error_code) == (stream, ErrorCodes.NO_ERROR)
    assert world.ours._streams == {}


FLOODS: dict[str, Callable[[int], list[Frame]]] = {
    "pings": lambda number: [PingFrame(0, opaque_data=number.to_bytes(8, "big"))],
    "settings": lambda number: [SettingsFrame(0, settings={3: number + 1})],
    "window updates": lambda number: [WindowUpdateFrame(0, window_increment=1)],
    "priorities": lambda number: [PriorityFrame(2 * number + 101, depends_on=1)],
    "empty data": lambda number: [DataFrame(1, b"")],
    "data of padding": lambda number: [DataFrame(1, b"", flags=["PADDED"], pad_length=0)],
    "unknown frames": lambda number: [_unknown()],
}


def _unknown() -> Frame:
    from hyperframe.frame import ExtensionFrame

    return ExtensionFrame(type=0xB0, stream_id=0, flag_byte=0, body=b"")


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_ends_its_connection(kind: str) -> None:
    world = World()
    world.open()
    frames = 0
    while not world.ours.over and frames < 20_000:
        world.raw(*(frame for n in range(50) for frame in FLOODS[kind](frames + n)))
        frames += 50
    assert world.ours.over
    assert frames < 2 * tls_settings.FRAME_BURST
    assert world.server.handlers[0].closings
    assert len(world.take()) < 200_000, "what was answered is bounded too"


def test_rapid_resets_end_the_connection() -> None:
    """Requests that are taken back at once (CVE-2023-44487) cost as much as any."""
    world = World(lambda incoming: None)
    requests = 0
    while not world.ours.over and requests < 5000:
        stream = world.peer.get_next_available_stream_id()
        world.peer.send_headers(stream, GET, end_stream=True)
        world.peer.reset_stream(stream)
        world.ours.receive(world.peer.data_to_send())
        requests += 1
    assert requests < 500
    assert len(world.ours._streams) <= 1
    assert len(world.ours._h2._closed_streams) <= 256


@pytest.mark.parametrize("head", [GET, CONNECT])
def test_a_request_that_is_taken_back_at_once_hurts_nobody(head: list[tuple[str, str]]) -> None:
    def answer(incoming: IncomingRequest) -> None:
        if incoming.request.protocol:
            server(incoming)
        else:
            incoming.respond(200, (), b"page")

    server = AcceptingServer()
    world = World(answer)
    stream = world.peer.get_next_available_stream_id()
    world.peer.send_headers(stream, head)
    world.peer.reset_stream(stream)
    world.ours.receive(world.peer.data_to_send())  # both in one piece
    world.exchange()
    assert not world.ours.over
    assert world.ours._streams == {}
    assert all(handler.closings for handler in server.handlers)


def test_a_browser_is_not_taken_for_a_flood() -> None:
    world = World(lambda incoming: incoming.respond(200, (), b"page"))
    for _ in range(60):
        for _ in range(20):
            stream = world.peer.get_next_available_stream_id()
            world.peer.send_headers(stream, GET, end_stream=True)
        world.exchange()
        world.carrier.time += 1
    assert not world.ours.over


def test_a_peer_with_small_windows_may_open_them_as_often_as_it_must() -> None:
    world = World()
    stream = world.open()
    tunnel = world.server.tunnels[0]
    for _ in range(1200):
        tunnel.send_packets([ip_packet(1400)] * 10)
        world.exchange()
        world.peer.increment_flow_control_window(14_040, stream)
        world.peer.increment_flow_control_window(14_040)
    assert not world.ours.over
    assert tunnel.counters.tx_packets == 12_000


@pytest.mark.parametrize(
    "frames",
    [
        [HeadersFrame(1, b"\x82" * 30_000, flags=["END_HEADERS"])],
        [HeadersFrame(1, b""), *(ContinuationFrame(1, b"") for _ in range(200))],
        [HeadersFrame(1, b"\xff" * 40, flags=["END_HEADERS"])],
        [HeadersFrame(2, b"\x82", flags=["END_HEADERS"])],
        [DataFrame(1, b"before its head")],
        [RstStreamFrame(7)],
        [WindowUpdateFrame(0, window_increment=(1 << 31) - 1)],
        [SettingsFrame(0, settings={4: 1 << 31})],
    ],
    ids=lambda frames: type(frames[0]).__name__,
)
def test_what_breaks_the_protocol_ends_its_connection(frames: list[Frame]) -> None:
    world = World()
    world.raw(*frames)
    assert world.ours.over
    assert world.farewell() not in (None, 0)


def test_a_huge_head_is_refused() -> None:
    world = World()
    stream = world.peer.get_next_available_stream_id()
    world.peer.remote_settings._settings.pop(SettingCodes.MAX_HEADER_LIST_SIZE, None)
    world.peer.send_headers(stream, [*GET, *((f"x-{n}", "y" * 1000) for n in range(40))])
    world.ours.receive(world.peer.data_to_send())
    assert world.ours.over
    assert world.server.requests == []


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 100])
def test_what_is_no_http2_ends_its_connection(junk: bytes) -> None:
    ours = Http2Connection(FakeCarrier(), AcceptingServer())
    ours.receive(junk)
    assert ours.over
    ours.receive(b"more")  # and what comes after is of no interest


def test_a_request_that_fails_by_a_defect_ends_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(incoming: IncomingRequest) -> None:
        raise RuntimeError("defect")

    world = World(fail)
    world.peer.send_headers(1, GET, end_stream=True)
    world.ours.receive(world.peer.data_to_send())
    assert world.ours.over
    assert "defect" in caplog.text
