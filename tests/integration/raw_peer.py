"""A client that says what a test wants, right or wrong: stock aioquic, and none of our transport.

So a mistake of ours cannot make up for itself, and everything can be sent that our own client would
refuse to send. Runs on the event loop of a scenario (`fake_gateway.play`).
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    QuicEvent,
    StopSendingReceived,
    StreamReset,
)

from qvpn_core.masque.connect_ip import ConnectIpSession, Role
from tests.unit.transport.helpers import Changes
from tests.world.packets import ICMP, ICMP6, ones_sum
from tests.world.vpn import PATIENCE, Credentials

CONNECT_IP_PATH: Final = "/.well-known/masque/ip/*/*/"

Fields = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Answer:
    """What came back on a stream so far; `reset` is the code with which the peer ended it."""

    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None
    stopped: int | None = None

    @property
    def status(self) -> int:
        return int(self.fields.get(":status", 0))


class RawPeer(QuicConnectionProtocol):
    """One connection. Wait with `until` for what its streams and datagrams bring."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # It is what makes stock aioquic announce HTTP Datagrams.
        self.http = H3Connection(self._quic, enable_webtransport=True)
        self.answers: dict[int, Answer] = {}
        self.datagrams: list[bytes] = []
        #: How the connection ended, once it has.
        self.end: ConnectionTerminated | None = None
        self._changes = Changes()

    def quic_event_received(self, event: QuicEvent) -> None:
        match event:
            case DatagramFrameReceived(data=data):
                self.datagrams.append(data)
            case ConnectionTerminated():
                self.end = event
            case StreamReset(error_code=code, stream_id=stream):
                self._answer(stream).reset = code
            case StopSendingReceived(error_code=code, stream_id=stream):
                self._answer(stream).stopped = code
            case _:
                for http_event in self.http.handle_event(event):
                    match http_event:
                        case HeadersReceived(headers=fields, stream_id=stream, stream_ended=ended):
                            answer = self._answer(stream)
                            answer.fields |= {key.decode(): value.decode() for key, value in fields}
                            answer.ended |= ended
                        case DataReceived(data=data, stream_id=stream, stream_ended=ended):
                            answer = self._answer(stream)
                            answer.body += data
                            answer.ended |= ended
        self._changes.note()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition()` is true; it is asked after each event. TimeoutError if never."""
        await self._changes.until(condition, PATIENCE)

    # -- streams

    def request(self, fields: Fields, body: bytes = b"", *, end: bool = True) -> Answer:
        """Send a request; its answer fills up as it arrives."""
        stream = self._quic.get_next_available_stream_id()
        answer = self._answer(stream)
        head = [(key.encode(), value.encode()) for key, value in fields]
        self.http.send_headers(stream, head, end_stream=end and not body)
        if body:
            self.http.send_data(stream, body, end_stream=end)
        self.transmit()
        return answer

    def raw_stream(self, data: bytes) -> Answer:
        """Send bytes of one's own instead of HTTP/3 frames on a new request stream."""
        stream = self._quic.get_next_available_stream_id()
        answer = self._answer(stream)
        self._quic.send_stream_data(stream, data)
        self.transmit()
        return answer

    def _answer(self, stream: int) -> Answer:
        return self.answers.setdefault(stream, Answer())

    def stream_of(self, answer: Answer) -> int:
        return next(stream for stream, known in self.answers.items() if known is answer)

    def datagram(self, payload: bytes) -> None:
        """Send a DATAGRAM frame; what it holds is the caller's affair."""
        self._quic.send_datagram_frame(payload)
        self.transmit()


class RawDevice:
    """An accepted CONNECT-IP request on a RawPeer, and what the gateway told on it."""

    def __init__(self, peer: RawPeer, answer: Answer) -> None:
        self.peer = peer
        self.answer = answer
        self.stream = peer.stream_of(answer)
        self.prefix = encode_uint_var(self.stream // 4) + b"\0"
        state = ConnectIpSession(Role.CLIENT)
        state.receive(answer.body)
        addresses = {entry.prefix.version: entry.prefix for entry in state.local_addresses}
        self.v4, self.v6 = (str(addresses[version].network_address) for version in (4, 6))

    @classmethod
    async def open(cls, peer: RawPeer, device: Credentials) -> RawDevice:
        """Ask for a tunnel and wait until it is configured."""
        answer = peer.request(connect_ip(device), end=False)
        await peer.until(lambda: answer.status)
        assert answer.status == 200
        await peer.until(lambda: answer.body)
        return cls(peer, answer)

    def capsules(self, data: bytes, *, end: bool = False) -> None:
        """Send bytes on the capsule stream."""
        self.peer.http.send_data(self.stream, data, end_stream=end)
        self.peer.transmit()

    def packet(self, packet: bytes) -> None:
        """Send an IP packet, or what calls itself one."""
        self.peer.datagram(self.prefix + packet)

    @property
    def packets(self) -> list[bytes]:
        """The IP packets that came in so far."""
        start = len(self.prefix)
        return [data[start:] for data in self.peer.datagrams if data.startswith(self.prefix)]

    async def reaches(self, target: str) -> None:
        """Ping an address and wait for its answer: the session works, whatever went before."""
        source = self.v4 if ip_address(target).version == 4 else self.v6
        reply = echo(target, source, reply=True)[-8 - len(_ECHO) :]  # without the IP header
        self.packet(echo(source, target))
        await self.peer.until(lambda: any(packet.endswith(reply) for packet in self.packets))
        self.peer.datagrams.clear()


def connect_ip(device: Credentials) -> list[tuple[str, str]]:
    """The head of a device's request."""
    return [
        (":method", "CONNECT"),
        (":protocol", "connect-ip"),
        (":scheme", "https"),
        (":authority", device.gateway),
        (":path", CONNECT_IP_PATH),
        ("capsule-protocol", "?1"),
        ("authorization", f"Bearer {device.token}"),
    ]


def quic_configuration() -> QuicConfiguration:
    """A client that trusts everybody and takes datagrams."""
    return QuicConfiguration(
        is_client=True,
        alpn_protocols=H3_ALPN,
        verify_mode=ssl.CERT_NONE,
        max_datagram_frame_size=65535,
        max_datagram_size=1440,
    )


@asynccontextmanager
async def raw_peer(host: str, port: int = 443) -> AsyncIterator[RawPeer]:
    """A connection to a gateway, closed at the end. TimeoutError when there is no answer."""
    async with asyncio.timeout(PATIENCE):
        opening = connect(host, port, configuration=quic_configuration(), create_protocol=RawPeer)
        peer = await opening.__aenter__()
    try:
        assert isinstance(peer, RawPeer)
        yield peer
    finally:
        await opening.__aexit__(None, None, None)


_ECHO: Final = b"are you there"


def echo(source: str, destination: str, *, reply: bool = False) -> bytes:
    """An ICMP or ICMPv6 echo request or reply, complete."""
    here, there = ip_address(source), ip_address(destination)
    if here.version == 4:
        message = struct.pack("!BBHHH", 0 if reply else 8, 0, 0, 7, 7) + _ECHO
        message = _checked(message, 2, message)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, ICMP, 0)
        head += here.packed + there.packed
        return _checked(head, 10, head) + message
    message = struct.pack("!BBHHH", 129 if reply else 128, 0, 0, 7, 7) + _ECHO
    pseudo = here.packed + there.packed + struct.pack("!I3xB", len(message), ICMP6)
    message = _checked(message, 2, pseudo + message)
    head = struct.pack("!IHBB", 6 << 28, len(message), ICMP6, 64) + here.packed + there.packed
    return head + message


def _checked(data: bytes, at: int, covered: bytes) -> bytes:
    """`data` with the checksum over `covered` in its place."""
    return data[:at] + struct.pack("!H", ~ones_sum(covered) & 0xFFFF) + data[at + 2 :]
