"""HTTP/2 over one TLS connection, sans-IO: requests, tunnels, flow control, and what floods cost.

Used by both ends: `receive` takes plaintext, `pull` gives the next of it to send, one chunk at a
time, so that what waits does so here, where it can be dropped, and not in a socket. Frames and
their rules are h2's; tunnels are extended CONNECT (RFC 8441) with IP packets in DATAGRAM capsules.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from qvpn_core.errors import ProtocolViolation, QvpnError, TunnelLost
from qvpn_core.transport import settings, tls_settings
from qvpn_core.transport.carrier import Carrier
from qvpn_core.transport.http2_bytes import TO_HTTP2, ByteStreams, why_broken
from qvpn_core.transport.http2_streams import Answer, Fetch, Fields, StreamLost, Taker, text_fields
from qvpn_core.transport.http2_tunnel import Http2Request, Http2Tunnel
from qvpn_core.transport.http3 import Response, parse_request
from qvpn_core.transport.interface import (
    H3_REQUEST_CANCELLED,
    Headers,
    IncomingRequest,
    Refused,
    Request,
    TunnelHandler,
)
from qvpn_core.transport.streams import ByteStream

log = logging.getLogger(__name__)

_BITE = 1 << 14  # bytes between two looks at what the frames in them cost


@dataclass(slots=True)
class _Stream:
    """A stream that is not closed yet in both directions."""

    taker: Taker | None = None
    #: What waits for flow control, and how many bytes; the first chunk is sent up to `offset`.
    chunks: deque[bytes] = field(default_factory=deque)
    size: int = 0
    offset: int = 0
    #: Finish our side behind the last chunk.
    finish: bool = False
    finished: bool = False
    peer_ended: bool = False


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = 256  # remembered for each connection; h2's own 65536 are megabytes


class Http2Connection:
    """One connection on `carrier`, which is woken when `pull` may have something.

    `on_request` makes it the gateway's end.
    """

    def __init__(
        self, carrier: Carrier, on_request: Callable[[IncomingRequest], None] | None = None
    ) -> None:
        self.carrier = carrier
        self._on_request = on_request
        client = on_request is None
        self.mtu = tls_settings.CLIENT_MTU if client else tls_settings.GATEWAY_MTU
        self._h2 = _Connection(H2Configuration(client_side=client, header_encoding=None))
        self._h2.local_settings = Settings(client=client, initial_values=_local_settings(client))
        self._h2.decoder.max_header_list_size = tls_settings.MAX_HEADERS
        self._h2.initiate_connection()
        self._wide = False
        #: At the gateway: whether the peer has proven to be a device; at the client, whether it
        #: has opened a stream. It then may have many.
        self.known = False
        self._streams: dict[int, _Stream] = {}
        self.tunnels: dict[int, Http2Tunnel] = {}
        self.streams = ByteStreams(self)
        #: Whose turn it is to send: neither keeps the other waiting.
        self._turns = (self._pull_stream, self._pull_tunnel)
        self._tokens, self._refilled = tls_settings.FRAME_BURST, carrier.now()
        #: Nothing is received any more; what `pull` still has is the last.
        self.over = False
        #: At the gateway: whether a request was answered without a tunnel, and when it last moved.
        self.answered = False
        self.last_request: float | None = None
        #: At the client: whether the peer takes tunnels; None before its SETTINGS.
        self.takes_tunnels: bool | None = None
        self.on_settings: Callable[[], None] = lambda: None
        #: At the client: called when there may be room for another request.
        self.on_room: Callable[[], None] = lambda: None
        #: At the gateway: called when a tunnel or a stream was accepted, and when the last ended.
        self.on_accept: Callable[[], None] = lambda: None
        self.on_vacant: Callable[[], None] = lambda: None
        if client:
            self._widen()

    # Receiving

    def receive(self, data: bytes) -> None:
        """Take plaintext. A breach of the protocol, or a flood, makes the connection `over`."""
        try:
            for at in range(0, len(data), _BITE):
                if self.over:
                    break
                for event in self._h2.receive_data(data[at : at + _BITE]):
                    self._handle(event)
        except H2Error as error:
            self._break_off(ProtocolViolation(f"the peer broke HTTP/2: {error}"))
        except Exception:
            log.exception("the connection with %s failed by a defect", self.carrier.peer)
            self._h2.close_connection(ErrorCodes.INTERNAL_ERROR)
            self._break_off(TunnelLost("the connection failed by a defect"))
        self.on_room()
        self.carrier.wake()

    def _handle(self, event: Event) -> None:
        if self.over:
            return  # what came in one bite with the end
        match event:
            case DataReceived():
                self._data(event)
            case RequestReceived():
                if self._affordable(1.0 if self.known else tls_settings.REQUEST_COST):
                    self._request(event)
            case StreamEnded(stream_id=number) if number is not None:
                self._stream_ended(number)
            case ResponseReceived(stream_id=number, headers=fields) if number is not None:
                stream = self._streams.get(number)
                if stream is not None and stream.taker is not None:
                    stream.taker.headers(_raw(fields))
            case ConnectionTerminated(error_code=code):
                self._break_off(
                    TunnelLost("the peer closed the connection")
                    if code == ErrorCodes.NO_ERROR
                    else TunnelLost(f"the connection failed (HTTP/2 error {int(code or 0):#x})")
                )
            case SettingsAcknowledged() | PingAckReceived():
                pass
            case _ if not self._affordable(1.0):
                pass
            case StreamReset(stream_id=number, error_code=code) if number is not None:
                self._lose(number, StreamLost(int(code or 0)))
            case RemoteSettingsChanged(changed_settings=changed):
                if self.takes_tunnels is None:
                    setting = changed.get(SettingCodes.ENABLE_CONNECT_PROTOCOL)
                    self.takes_tunnels = setting is not None and setting.new_value == 1
                    self.on_settings()

    def _affordable(self, cost: float) -> bool:
        """Pay for a frame that moves no content; who cannot is left (RFC 9113 section 10.5)."""
        now = self.carrier.now()
        earned = (now - self._refilled) * tls_settings.FRAME_RATE
        self._tokens = min(tls_settings.FRAME_BURST, self._tokens + earned) - cost
        self._refilled = now
        if self._tokens >= 0:
            return True
        self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        self._break_off(ProtocolViolation("the peer floods the connection with frames"))
        return False

    def _request(self, event: RequestReceived) -> None:
        number = event.stream_id
        assert number is not None
        assert self._on_request is not None
        self.last_request = self.carrier.now()
        self._streams[number] = _Stream()
        request = parse_request(_raw(event.headers))
        ended = event.stream_ended is not None
        self._on_request(Http2Request(self, number, request, ended=ended))

    def _data(self, event: DataReceived) -> None:
        number, data = event.stream_id, event.data or b""
        assert number is not None
        stream = self._streams.get(number)
        if not data and event.stream_ended is None and not self._affordable(1.0):
            return
        if stream is not None and stream.taker is not None and data:
            stream.taker.data(data)
        done = event.flow_controlled_length or 0
        if number in self.streams.open:
            done -= len(data)  # until its owner reads it
        # Handed on or thrown away, so there is room for as much again.
        self._h2.acknowledge_received_data(done, number)

    def _stream_ended(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream.peer_ended = True
            if stream.finished:
                del self._streams[number]
            if stream.taker is not None:
                stream.taker.end()

    def _lose(self, number: int, error: QvpnError) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None and stream.taker is not None:
            stream.taker.lost(error)

    def _break_off(self, error: QvpnError) -> None:
        self.over = True
        while self._streams:
            self._lose(next(iter(self._streams)), error)

    # Sending

    def pull(self) -> bytes:
        """The next plaintext to send, about a TLS record of it; empty when there is none now."""
        control = self._h2.data_to_send()
        if control or self.over:
            return control
        first, second = self._turns
        self._turns = second, first
        return self._h2.data_to_send() if first() or second() else b""

    def _pull_stream(self) -> bool:
        for number in list(self._streams):
            if self._send_waiting(number):
                # The next in turn goes first, the next time.
                if number in self._streams:
                    self._streams[number] = self._streams.pop(number)
                return True
        return False

    def _pull_tunnel(self) -> bool:
        for number, tunnel in self.tunnels.items():
            data = tunnel.take(self._room(number))
            if data:
                self._send_data(number, data)
                self.tunnels[number] = self.tunnels.pop(number)
                return True
        return False

    def _room(self, number: int) -> int:
        return min(
            self._h2.local_flow_control_window(number),
            self._h2.max_outbound_frame_size,
            tls_settings.CHUNK,
        )

    def _send_data(self, number: int, data: bytes | memoryview) -> None:
        self._tokens = min(tls_settings.FRAME_BURST, self._tokens + tls_settings.FRAME_CREDIT)
        self._h2.send_data(number, data)

    def _send_waiting(self, number: int) -> bool:
        stream = self._streams[number]
        if stream.chunks:
            room = self._room(number)
            if room <= 0:
                return False
            chunk = memoryview(stream.chunks[0])[stream.offset : stream.offset + room]
            self._send_data(number, chunk)
            stream.offset += len(chunk)
            stream.size -= len(chunk)
            if stream.offset == len(stream.chunks[0]):
                stream.chunks.popleft()
                stream.offset = 0
            self.streams.sent(number)
            if self.last_request is not None:
                self.last_request = self.carrier.now()
            if stream.chunks or not stream.finish:
                return True
        if not stream.finish:
            return False
        self._h2.end_stream(number)
        stream.finish, stream.finished = False, True
        if stream.taker is None and not stream.peer_ended:
            # The rest of the request is not wanted (RFC 9113 section 8.1).
            self._h2.reset_stream(number, ErrorCodes.NO_ERROR)
            del self._streams[number]
        elif stream.peer_ended:
            del self._streams[number]
        return True

    def send(self, number: int, data: bytes) -> None:
        """Send bytes on a stream, reliably and in order, as flow control allows."""
        stream = self._streams.get(number)
        if stream is None or self.over or not data:
            return
        stream.chunks.append(data)
        stream.size += len(data)
        if self.tunnels.get(number) and stream.size > tls_settings.MAX_BUFFERED:
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            self._break_off(TunnelLost("the peer does not take what it is told"))
        self.carrier.wake()

    def finish(self, number: int) -> None:
        """End our side of a stream behind what waits."""
        stream = self._streams.get(number)
        if stream is not None and not self.over:
            stream.finish = True
            self.carrier.wake()

    def reset(self, number: int, error: int) -> None:
        """Abandon a stream with an error code of HTTP/3, in both directions."""
        if self._streams.pop(number, None) is not None and not self.over:
            with suppress(H2Error):  # the peer may have done the same already
                self._h2.reset_stream(number, TO_HTTP2.get(error, ErrorCodes.PROTOCOL_ERROR))
            self.on_room()
            self.carrier.wake()

    def unsent(self, number: int) -> int:
        """Bytes that wait to be sent on a stream."""
        stream = self._streams.get(number)
        return 0 if stream is None else stream.size

    def acknowledge(self, number: int, count: int) -> None:
        """The owner of a stream has read `count` bytes, or never will."""
        if not self.over:
            self._h2.acknowledge_received_data(count, number)
            self.carrier.wake()

    def open_window(self, number: int, count: int) -> bool:
        """Let the peer send `count` bytes more on a stream, unless it has nothing to send."""
        stream = self._streams.get(number)
        if self.over or stream is None or stream.peer_ended:
            return False
        self._h2.increment_flow_control_window(count, number)
        return True

    def ping(self) -> None:
        """Have the peer answer."""
        if not self.over:
            self._h2.ping(bytes(8))
            self.carrier.wake()

    def close(self) -> None:
        """Say goodbye; every tunnel ends in order, every stream does not."""
        if not self.over:
            self._h2.close_connection()
            self.over = True
        for tunnel in list(self.tunnels.values()):
            tunnel.ended(None)
        self.streams.end_all(TunnelLost("the connection was closed"))
        self._streams.clear()
        self.carrier.wake()

    def lost(self, error: QvpnError) -> None:
        """The connection below is gone."""
        self._break_off(error)

    # The gateway's end

    def respond(self, number: int, status: int, headers: Headers, body: bytes) -> None:
        """Answer a request and finish its stream."""
        self.answered = True
        self.streams.forget_stream(number)
        stream = self._streams.get(number)
        if stream is None or self.over:
            return  # nobody wants to hear it
        stream.taker = None
        if self._answer_head(number, [(b":status", str(status).encode())], headers):
            self.send(number, body)
            self.finish(number)

    def accept(self, number: int, handler: TunnelHandler, headers: Headers) -> Http2Tunnel | None:
        """Answer with 200 and open the tunnel; None when the peer has gone meanwhile."""
        if number not in self._streams or self.over:
            return None
        head = [(b":status", b"200"), (b"capsule-protocol", b"?1")]
        if not self._answer_head(number, head, headers):
            return None
        held = self.streams.open.get(number)
        tunnel = self._open(number, handler)
        if held is not None:
            tunnel.resume(held.take(), ended=held.ended)
            self.streams.forget_stream(number)
        self.on_accept()
        self.carrier.wake()
        return tunnel

    def hold(self, number: int, *, ended: bool) -> ByteStream:
        """The byte stream of a device's request, which is answered later."""
        if number not in self._streams or self.over:
            return self.streams.gone(number)
        self.welcome()
        stream = self.streams.own(number)
        if ended:
            stream.received_end()
        return stream

    def accept_stream(self, number: int, headers: Headers, *, ended: bool) -> ByteStream:
        """Answer with 200 and open the stream, which is broken if the peer has gone."""
        if number not in self._streams or self.over:
            return self.streams.gone(number)
        stream = self.streams.open.get(number) or self.hold(number, ended=ended)
        if not self._answer_head(number, [(b":status", b"200")], headers):
            stream.broke(TunnelLost("the peer cancelled its request"))
            return stream
        self.on_accept()
        self.carrier.wake()
        return stream

    def welcome(self) -> None:
        """From now on the peer may have many streams, each with its full window."""
        if not self.known:
            self.known = True
            self._widen()
            self._h2.increment_flow_control_window(
                settings.MAX_STREAMS * tls_settings.STREAM_WINDOW
            )
            if self._on_request is not None:
                self._h2.update_settings(
                    {SettingCodes.MAX_CONCURRENT_STREAMS: settings.MAX_STREAMS}
                )

    def take(self, number: int, taker: Taker) -> None:
        """Hand what arrives on a stream to `taker`."""
        if number in self._streams:
            self._streams[number].taker = taker

    def _answer_head(self, number: int, head: list[tuple[bytes, bytes]], headers: Headers) -> bool:
        """Whether the peer still wants an answer: it may have taken the request back already."""
        try:
            self._send_head(number, head, headers)
        except H2Error:
            self._streams.pop(number, None)
            return False
        return True

    # The client's end

    @property
    def may_ask(self) -> bool:
        """Whether the peer lets us open another stream."""
        return self._h2.open_outbound_streams < self._h2.remote_settings.max_concurrent_streams

    def request(
        self,
        request: Request,
        handler: TunnelHandler,
        done: Callable[[Http2Tunnel | Exception], None],
    ) -> int:
        """Ask for a tunnel; `done` gets it, :class:`Refused` or a QvpnError.

        Returns the number of the stream, for `cancel`.
        """
        number = self._ask(request, (("capsule-protocol", "?1"),))

        def opened(fields: Fields) -> None:
            tunnel = self._open(number, handler)
            tunnel.response_headers = text_fields(fields)
            done(tunnel)

        def failed(error: QvpnError) -> None:
            done(Refused(None) if isinstance(error, StreamLost) else error)

        self.take(number, Answer(opened, partial(self._refused, number, done), failed))
        return number

    def open_stream(self, request: Request, done: Callable[[ByteStream | Exception], None]) -> int:
        """The same for a byte stream, by classic CONNECT (RFC 9113 section 8.5)."""
        self.welcome()
        number = self._ask(request, ())

        def opened(fields: Fields) -> None:
            stream = self.streams.own(number)
            stream.response_headers = text_fields(fields)
            done(stream)

        def failed(error: QvpnError) -> None:
            done(why_broken(error))

        self.take(number, Answer(opened, partial(self._refused, number, done), failed))
        return number

    def cancel(self, number: int) -> None:
        """Take a request back, answered or not."""
        self.reset(number, H3_REQUEST_CANCELLED)
        gone = TunnelLost("the request was cancelled")
        if number in self.tunnels:
            self.tunnels[number].ended(gone)
        elif number in self.streams.open:
            self.streams.open[number].broke(gone)

    def withdraw(self, error: QvpnError) -> None:
        """Take back the requests that have no answer yet: they fail with `error`."""
        for number, stream in list(self._streams.items()):
            if isinstance(stream.taker, Answer):
                self.reset(number, H3_REQUEST_CANCELLED)
                stream.taker.lost(error)

    def _refused(self, number: int, done: Callable[[Refused], None], refused: Refused) -> None:
        self.reset(number, H3_REQUEST_CANCELLED)
        done(refused)

    def fetch(
        self,
        request: Request,
        body: bytes,
        limit: int,
        done: Callable[[Response | Exception], None],
    ) -> None:
        """Ask for a resource with up to `limit` bytes of content."""
        number = self._ask(request, ())
        self.take(number, Fetch(limit, done))
        self.send(number, body)
        self.finish(number)

    def _ask(self, request: Request, more: Headers) -> int:
        number = self._h2.get_next_available_stream_id()
        fields = (
            (b":method", request.method),
            (b":protocol", request.protocol),
            (b":scheme", request.scheme),
            (b":authority", request.authority),
            (b":path", request.path),
        )
        pseudo = [(name, value.encode()) for name, value in fields if value]
        self._streams[number] = _Stream()
        self._send_head(number, pseudo, (*more, *request.headers))
        self.carrier.wake()
        return number

    # Both

    def _send_head(self, number: int, head: list[tuple[bytes, bytes]], headers: Headers) -> None:
        fields = ((name.encode(), value.encode()) for name, value in headers)
        self._h2.send_headers(number, [*head, *fields])

    def _open(self, number: int, handler: TunnelHandler) -> Http2Tunnel:
        self._widen()
        self.open_window(number, tls_settings.WINDOW - tls_settings.STREAM_WINDOW)
        tunnel = self.tunnels[number] = Http2Tunnel(self, number, handler)
        self.take(number, tunnel)
        return tunnel

    def tunnel_ended(self, number: int) -> None:
        """Forget a tunnel."""
        if self.tunnels.pop(number, None):
            self.notice_vacancy()

    @property
    def in_use(self) -> bool:
        """Whether the connection carries a tunnel or a stream."""
        return bool(self.tunnels or self.streams.open)

    def notice_vacancy(self) -> None:
        """A tunnel or a stream has ended."""
        if not self.in_use and not self.over:
            self.on_vacant()

    def _widen(self) -> None:
        if not self._wide:
            self._wide = True
            self._h2.increment_flow_control_window(tls_settings.WINDOW - tls_settings.STREAM_WINDOW)


def _local_settings(client: bool) -> dict[SettingCodes, int]:
    common = {SettingCodes.MAX_HEADER_LIST_SIZE: tls_settings.MAX_HEADERS}
    if client:
        return common | {SettingCodes.ENABLE_PUSH: 0}
    return common | {
        SettingCodes.MAX_CONCURRENT_STREAMS: tls_settings.MAX_STREAMS,
        SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
    }


def _raw(fields: object) -> list[tuple[bytes, bytes]]:
    """Fields of an event, which are bytes without a header encoding."""
    assert isinstance(fields, list)
    return [(bytes(name), bytes(value)) for name, value in fields]
