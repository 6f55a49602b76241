"""Streams of aioquic's `QuicConnection`: flow control that follows readers, a short way for bytes.

The other module that touches aioquic's private attributes; `aioquic_adapter.py` is built on it.
What is added here:

- flow control follows what owners have read, where aioquic doubles every window that was used;
- new bytes of streams are packed into packets of their own and sealed by the batch, and bytes that
  come in order go straight to their stream. Whatever else there is about a stream (retransmissions,
  resets, an end without bytes, bytes out of order) goes aioquic's own way;
- pacing allows the burst that a timer of a millisecond makes necessary.

It does no I/O. tests/unit/transport/test_aioquic_contract.py fails when aioquic changes underneath.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil, inf
from typing import Any, Final

from aioquic import tls
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicSentPacket,
)
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream

from qvpn_core.masque.varint import encode_varint

# Update keys after this many packets: half the limit of 2^23 for AES-GCM (RFC 9001 section 6.6).
KEY_UPDATE_PACKETS = 1 << 22

# The window of a stream whose owner keeps up grows to this (bytes), from the configured one.
MAX_STREAM_WINDOW = 1 << 20
# What the windows of all streams of a connection together may grow by (bytes).
WINDOW_GROWTH = 16 << 20

#: Pacing: how much faster than a window for each round trip (RFC 9002 section 7.7), and the seconds
#: whose worth may be sent at once. A timer of an event loop is a millisecond late or more, and what
#: may not be sent then is never made up for.
PACING_GAIN: Final = 1.25
PACING_BURST: Final = 0.002

AEAD_TAG = 16
PACKET_NUMBER = 2  # bytes; what aioquic sends
SAMPLE_AT = 4  # bytes from the start of the packet number (RFC 9001 section 5.4.2)
SAMPLE = 16
NONCE = 12
_LIMIT_FRAME = 1 + 8 + 8  # bytes of MAX_STREAM_DATA at most (RFC 9000 section 19.10)
_STREAM = int(QuicFrameType.STREAM_BASE)
STREAM_KINDS = range(_STREAM, _STREAM + 8)
_FIN, _LENGTH, _OFFSET = 1, 2, 4  # bits of its type (RFC 9000 section 19.8)
_ONE_RTT = tls.Epoch.ONE_RTT
# Shared by all packets that go the short way: nothing of them is logged.
NO_FRAMES: list[Any] = []


class BurstPacer(QuicPacketPacer):
    """aioquic's token bucket, deep enough for an event loop."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(int(PACING_GAIN * congestion_window), smoothed_rtt)
        self.bucket_max = max(self.bucket_max, PACING_BURST)

    def allowance(self, now: float) -> float:
        """How many packets may be sent at once: as often as `next_send_time` would say so."""
        if self.packet_time is None:
            return inf
        self.update_bucket(now)
        return ceil(self.bucket_time / self.packet_time)

    def spend(self, packets: int) -> None:
        """So many were sent; as `update_after_send` does it one by one."""
        if self.packet_time is not None:
            self.bucket_time = max(0.0, self.bucket_time - packets * self.packet_time)


class StreamConnection(QuicConnection):
    """A QUIC connection that carries bulk on streams."""

    def __init__(self, *, configuration: QuicConfiguration, **arguments: Any) -> None:
        super().__init__(configuration=configuration, **arguments)
        self._key_update_at = KEY_UPDATE_PACKETS
        self._unanswered_since = 0.0
        self._loss._pacer = BurstPacer(max_datagram_size=self._max_datagram_size)
        self._init_flow_control(configuration)

    def can_write(self, stream_id: int) -> bool:
        """Whether a stream's sending part is open: neither finished nor reset, by either side."""
        stream = self._streams.get(stream_id)
        return (
            stream is not None
            and stream.sender._buffer_fin is None
            and stream.sender._reset_error_code is None
        )

    # Flow control (RFC 9000 section 4)

    def _init_flow_control(self, configuration: QuicConfiguration) -> None:
        #: Bytes that were delivered to owners who have not read them, by stream, and in all.
        self._unread: dict[int, int] = {}
        self._unread_total = 0
        #: Windows of the streams that have an owner. The others are read as they arrive.
        self._windows: dict[int, int] = {}
        self._growth_left = WINDOW_GROWTH
        self._delivered_total = 0  # or never to be delivered: the rest of a stream that was reset
        self._connection_window = configuration.max_data
        #: Streams whose limit may be worth raising.
        self._limits_due: set[int] = set()

    def own_stream(self, stream_id: int) -> None:
        """From now on what arrives on the stream is unread until `bytes_read` says otherwise."""
        self._unread[stream_id] = 0
        self._windows[stream_id] = self._configuration.max_stream_data

    def bytes_held(self, stream_id: int, count: int) -> None:
        """`count` of the bytes that arrived on an owned stream wait for its owner."""
        self._unread[stream_id] += count
        self._unread_total += count

    def bytes_read(self, stream_id: int, count: int) -> None:
        """The owner of a stream has read `count` of its bytes."""
        self._unread[stream_id] -= count
        self._unread_total -= count
        if stream_id in self._streams:
            self._limits_due.add(stream_id)

    def disown_stream(self, stream_id: int) -> None:
        """The owner of a stream, if it has one, reads no more of it."""
        self._unread_total -= self._unread.pop(stream_id, 0)
        window = self._windows.pop(stream_id, 0)
        self._growth_left += max(0, window - self._configuration.max_stream_data)

    def admit_streams(self, count: int) -> None:
        """Let the peer, once known, have that many streams open, each with its full window.

        So one whose owner does not read holds up no other (RFC 9000 section 4.1).
        """
        limit = self._local_max_streams_bidi
        limit.value = max(limit.value, count)
        self._connection_window = count * self._configuration.max_stream_data + WINDOW_GROWTH

    def unsent(self, stream_id: int) -> int:
        """Bytes that were written to a stream and never sent."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    @property
    def stream_data_waits(self) -> bool:
        """Whether streams have something to send, or to send again."""
        return any(not stream.sender.buffer_is_empty for stream in self._streams.values())

    def abort_stream(self, stream_id: int, error_code: int) -> None:
        """Reset what is still open of both directions."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            if not stream.sender.is_finished:
                stream.sender.reset(error_code)
            if not stream.receiver.is_finished:
                self.stop_stream(stream_id, error_code)

    def next_event(self) -> quic_events.QuicEvent | None:
        """As aioquic's; what it delivers counts for flow control.

        Bytes that follow each other on a stream are one event.
        """
        event = super().next_event()
        if isinstance(event, quic_events.StreamDataReceived):
            if self._events and not event.end_stream:
                self._gather(event)
            self._delivered_total += len(event.data)
            self._limits_due.add(event.stream_id)
        elif isinstance(event, quic_events.StreamReset):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                receiver = stream.receiver
                self._delivered_total += receiver.highest_offset - receiver._buffer_start
        return event

    def _gather(self, event: quic_events.StreamDataReceived) -> None:
        parts = [event.data]
        while self._events and not event.end_stream:
            following = self._events[0]
            if (
                not isinstance(following, quic_events.StreamDataReceived)
                or following.stream_id != event.stream_id
            ):
                break
            self._events.popleft()
            parts.append(following.data)
            event.end_stream = following.end_stream
        event.data = b"".join(parts)

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        number = stream.stream_id
        if number not in self._limits_due:
            return
        if not stream.receiver.is_finished:
            window = self._windows.get(number, self._configuration.max_stream_data)
            unread = self._unread.get(number, 0)
            limit = stream.receiver._buffer_start - unread + window
            if limit - stream.max_stream_data_local >= window // 2:
                if not unread and window <= min(MAX_STREAM_WINDOW // 2, self._growth_left):
                    if number in self._windows:
                        self._growth_left -= window
                        self._windows[number] = 2 * window
                        limit += window
                stream.max_stream_data_local = limit
            if stream.max_stream_data_local_sent != stream.max_stream_data_local:
                buffer = builder.start_frame(
                    QuicFrameType.MAX_STREAM_DATA,
                    capacity=_LIMIT_FRAME,
                    handler=self._on_max_stream_data_delivery,
                    handler_args=(stream,),
                )
                buffer.push_uint_var(number)
                buffer.push_uint_var(stream.max_stream_data_local)
                stream.max_stream_data_local_sent = stream.max_stream_data_local
        self._limits_due.discard(number)

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery is not QuicDeliveryState.ACKED and stream.stream_id is not None:
            self._limits_due.add(stream.stream_id)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        data = self._local_max_data
        limit = self._delivered_total - self._unread_total + self._connection_window
        if limit - data.value >= self._connection_window // 2:
            data.value = limit
        # aioquic's own method would double the limit when it is half used.
        used, data.used = data.used, 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            data.used = used

    # The short way out

    def _packet_room(self) -> int:
        """Bytes of frames that fit one packet."""
        return self._max_datagram_size - 1 - len(self._peer_cid.cid) - PACKET_NUMBER - AEAD_TAG

    def _bulk(self) -> list[QuicStream]:
        """The streams that have nothing to send but bytes that were never sent, in turn."""
        found = []
        for stream in self._streams_queue:
            sender = stream.sender
            if sender.buffer_is_empty or stream.is_blocked or sender.reset_pending:
                continue
            pending = sender._pending
            if len(pending) == 1 and pending[0].start == sender.highest_offset:
                found.append(stream)
        return found

    def send_streams(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """`datagrams_to_send` with the short way for bulk: only on a path that is well known.

        What aioquic has to say goes first: it may be a loss that has to be made up for.
        """
        bulk = self._bulk() if self._handshake_confirmed else []
        for stream in bulk:
            stream.is_blocked = True
        try:
            sent = super().datagrams_to_send(now)
        finally:
            for stream in bulk:
                stream.is_blocked = False
        if bulk and not self._close_pending and self._close_event is None:
            address = self._network_paths[0].addr
            sent += [(packet, address) for packet in self._pack_streams(bulk, now)]
        return sent

    def _pack_streams(self, bulk: Sequence[QuicStream], now: float) -> list[bytes]:
        """Packets with one STREAM frame each, round and round, as far as all limits allow.

        The limits are those of flow control, congestion control and pacing (RFC 9000 section 4, RFC
        9002 sections 7 and 7.7). A packet is only begun when a full one may be sent.
        """
        room, size = self._packet_room(), self._max_datagram_size
        loss, pacer = self._loss, self._loss._pacer
        assert isinstance(pacer, BurstPacer)
        flight = loss.congestion_window - loss.bytes_in_flight
        credit = self._remote_max_data - self._remote_max_data_used
        allowance = pacer.allowance(now)
        plains: list[bytes] = []
        handlers: list[list[tuple[Any, Any]]] = []
        turns = deque(
            (stream, stream.sender, encode_varint(stream.stream_id or 0), memoryview(buffer))
            for stream in bulk
            if (buffer := stream.sender._buffer)
        )
        views = [turn[-1] for turn in turns]
        while turns and flight >= size and credit > 0 and len(plains) < allowance:
            turn = turns.popleft()
            stream, sender, number, view = turn
            start, end = sender.highest_offset, sender._buffer_stop
            # Of a fixed size, which is quicker to make than the shortest (RFC 9000 section 16).
            if start < 1 << 30:
                offset = (start | 0x80000000).to_bytes(4, "big")
            else:
                offset = (start | 0xC0 << 56).to_bytes(8, "big")
            space = room - 1 - len(number) - len(offset)
            stop = min(start + space, end, stream.max_stream_data_remote, start + credit)
            if stop <= start:
                continue  # the peer's window is shut
            fin = stop == sender._buffer_fin
            begin = sender._buffer_start
            kind = b"\x0d" if fin else b"\x0c"  # with an offset, to the end of the packet
            plains.append(b"".join((kind, number, offset, view[start - begin : stop - begin])))
            handlers.append([(sender.on_data_delivery, (start, stop, fin))])
            sender.highest_offset = stop
            credit -= stop - start
            flight -= len(plains[-1]) + size - room
            if stop < end:
                turns.append(turn)
        pacer.spend(len(plains))
        if turns and len(plains) >= allowance:
            self._pacing_at = pacer.next_send_time(now)
        for view in views:
            view.release()  # before anybody writes to the stream
        for stream in bulk:
            self._note_sent(stream)
        self._remote_max_data_used = self._remote_max_data - credit
        return self._send_packets(plains, handlers, now, in_flight=True)

    def _note_sent(self, stream: QuicStream) -> None:
        """What was packed is not pending any more."""
        sender = stream.sender
        start, stop = sender._pending[0].start, sender.highest_offset
        if stop == start:
            return
        sender._pending.subtract(start, stop)
        if stop == sender._buffer_fin:
            sender._pending_eof = False
        sender.buffer_is_empty = stop == sender._buffer_stop and not sender._pending_eof
        self._streams_queue.remove(stream)
        self._streams_queue.append(stream)

    def _send_packets(
        self,
        plains: Sequence[bytes],
        handlers: Sequence[list[tuple[Any, Any]]],
        now: float,
        *,
        in_flight: bool,
    ) -> list[bytes]:
        """Seal 1-RTT packets that want an answer, and account for them as aioquic does.

        `handlers` are told of each packet's fate; `in_flight` says that the congestion window
        counts them.
        """
        if not plains:
            return []
        number = self._packet_number
        if number >= self._key_update_at:
            self._key_update_at = number + KEY_UPDATE_PACKETS
            self.request_key_update()
        packets = self._seal(self._cryptos[_ONE_RTT], plains, number)
        space, loss, path = self._spaces[_ONE_RTT], self._loss, self._network_paths[0]
        sent_packets = space.sent_packets
        for packet, told in zip(packets, handlers, strict=True):
            sent = sent_packets[number] = QuicSentPacket(
                _ONE_RTT, in_flight, True, False, number, QuicPacketType.ONE_RTT, now, len(packet),
                told, NO_FRAMES,
            )  # fmt: skip
            if in_flight:
                loss._cc.on_packet_sent(packet=sent)
            number += 1
        path.bytes_sent += sum(map(len, packets))
        space.ack_eliciting_in_flight += len(packets)
        loss._time_of_last_sent_ack_eliciting_packet = now
        self._packet_number = number
        if not self._ack_eliciting_sent_since_receipt:
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = True
            self._unanswered_since = now
        return packets

    def _seal(self, crypto: CryptoPair, plains: Sequence[bytes], number: int) -> list[bytes]:
        """Protect packets numbered from `number` (RFC 9001 sections 5.3 and 5.4).

        Like `CryptoPair.encrypt_packet`, but the header protection of all is one cipher call.
        """
        if crypto._update_key_requested:
            crypto._update_key("local_update")
        send = crypto.send
        peer_cid = self._peer_cid.cid
        first = 0x40 | self._spin_bit << 5 | crypto.key_phase << 2 | (PACKET_NUMBER - 1)
        head = bytes((first,)) + peer_cid
        if send.hp._is_chacha20:  # type: ignore[union-attr]
            return [
                crypto.encrypt_packet(
                    head + (number + index & 0xFFFF).to_bytes(PACKET_NUMBER, "big"),
                    plain,
                    number + index,
                )
                for index, plain in enumerate(plains)
            ]
        encrypt = send.aead._aead.encrypt  # type: ignore[union-attr]
        iv = send.aead._iv  # type: ignore[union-attr]
        sealed = [
            encrypt(
                (iv ^ number + index).to_bytes(NONCE, "big"),
                plain,
                head + (number + index & 0xFFFF).to_bytes(PACKET_NUMBER, "big"),
            )
            for index, plain in enumerate(plains)
        ]
        sample_at = SAMPLE_AT - PACKET_NUMBER
        masks = send.hp._encryptor.update(  # type: ignore[union-attr]
            b"".join([body[sample_at : sample_at + SAMPLE] for body in sealed])
        )
        packets: list[bytes] = []
        at = 0
        for body in sealed:
            masked = number & 0xFFFF ^ int.from_bytes(masks[at + 1 : at + 1 + PACKET_NUMBER], "big")
            packets.append(
                b"%c%b%b%b"
                % (
                    first ^ masks[at] & 0x1F,
                    peer_cid,
                    masked.to_bytes(PACKET_NUMBER, "big"),
                    body,
                )
            )
            number += 1
            at += SAMPLE
        return packets

    # The short way in

    def _receive_stream(self, payload: bytes, at: int) -> int:
        """Take a STREAM frame at `at` whose bytes are the next of a stream that has an owner.

        Returns where it ends, or 0 for any other frame, which is aioquic's. An owner that has read
        makes the connection send, which opens windows; for other streams the receipt has to.
        """
        kind = payload[at]
        try:
            at += 1
            number = payload[at]
            at += 1
            if number >= 64:
                number, at = _varint(payload, at - 1)
            offset, at = _varint(payload, at) if kind & _OFFSET else (0, at)
            length, at = _varint(payload, at) if kind & _LENGTH else (len(payload) - at, at)
        except IndexError:
            return 0
        end = at + length
        stream = self._streams.get(number)
        if number not in self._windows or stream is None:
            return 0
        if kind & _FIN or not 0 < length <= len(payload) - at:
            return 0
        receiver = stream.receiver
        stop = offset + length
        if (
            receiver.is_finished
            or receiver._final_size is not None
            or receiver._buffer
            or offset != receiver._buffer_start
            or offset != receiver.highest_offset
            or stop > stream.max_stream_data_local
            or self._local_max_data.used + length > self._local_max_data.value
        ):
            return 0
        receiver._buffer_start = receiver.highest_offset = stop
        self._local_max_data.used += length
        self._events.append(
            quic_events.StreamDataReceived(data=payload[at:end], end_stream=False, stream_id=number)
        )
        return end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer (RFC 9000 section 16) and where it ends. Raises IndexError."""
    first = data[at]
    size = 1 << (first >> 6)
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "big") & (1 << 8 * size - 2) - 1, at + size
