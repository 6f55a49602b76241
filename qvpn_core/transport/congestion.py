"""Congestion control for tunnels: CUBIC (RFC 9438) in bytes, cheap per packet, sans-IO.

Registered with aioquic by name. Differs from aioquic's own CUBIC in that the window does not grow
while it is not used (RFC 9002 section 7.8), that leaving slow start by delay tolerates the jitter
of an event loop, that the cubic function is evaluated once per ACK and not once per packet, and in
what it counts for path MTU discovery.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.packet_builder import QuicSentPacket

CONGESTION_CONTROL = "qvpn-cubic"

C = 0.4  # segments per second cubed, RFC 9438 section 4.1
BETA = 0.7  # RFC 9438 section 4.6
RENO_ALPHA = 3 * (1 - BETA) / (1 + BETA)  # RFC 9438 section 4.3
MINIMUM_WINDOW = 2  # segments, RFC 9002 section 7.2

# Leaving slow start by delay, after HyStart++ (RFC 9406 section 4.2), seconds.
MIN_RTT_THRESHOLD = 0.004
MAX_RTT_THRESHOLD = 0.016
RTT_SAMPLES = 8

# Large packets lost in a row, none acknowledged between, that make it worth asking whether the path
# became a black hole for their size (RFC 8899 section 4.3). An inner TCP that meets one sends them
# one by one, at ever longer intervals, so few must do.
BLACK_HOLE_LOSSES = 3


class CongestionControl(QuicCongestionControl):
    """One path's window."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._segment = max_datagram_size
        self._recovery_start = -1.0
        self._epoch: float | None = None  # when congestion avoidance began
        self._window_max = 0.0  # segments, before the last reduction
        self._window_reno = 0.0  # segments, what Reno would have
        self._plateau = 0.0  # seconds from the epoch until the cubic reaches window_max (K)
        self._acked = 0  # bytes since the window was last computed
        self._computed_at = 0.0
        self._rtt_min = float("inf")
        self._rtts: deque[float] = deque(maxlen=RTT_SAMPLES)
        #: Packets declared lost so far.
        self.packets_lost = 0
        #: Size in bytes from which a packet says something about the path MTU.
        self.large = 1 << 16
        self._large_lost_in_a_row = 0

    @property
    def black_hole_suspected(self) -> bool:
        """Whether of late only packets of the largest size were lost."""
        return self._large_lost_in_a_row >= BLACK_HOLE_LOSSES

    def reset_black_hole(self) -> None:
        """Start counting anew."""
        self._large_lost_in_a_row = 0

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        self.bytes_in_flight += packet.sent_bytes

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        size = packet.sent_bytes
        in_use = self.bytes_in_flight * 2 >= self.congestion_window
        self.bytes_in_flight -= size
        if size >= self.large:
            self._large_lost_in_a_row = 0
        sent = packet.sent_time
        if not in_use or sent is None or sent <= self._recovery_start:
            return
        if self.ssthresh is None or self.congestion_window < self.ssthresh:
            self.congestion_window += size
            return
        self._acked += size
        if now != self._computed_at:
            self._computed_at = now
            self._avoid_congestion(now)

    def _avoid_congestion(self, now: float) -> None:
        segment = self._segment
        window = self.congestion_window / segment
        acked, self._acked = self._acked / segment, 0
        if self._epoch is None:
            self._epoch = now
            self._window_max = max(self._window_max, window)
            self._window_reno = window
            self._plateau = ((self._window_max - window) / C) ** (1 / 3)
        alpha = RENO_ALPHA if self._window_reno < self._window_max else 1.0
        self._window_reno += alpha * acked / window
        rtt = 0.0 if self._rtt_min == float("inf") else self._rtt_min
        target = C * (now - self._epoch + rtt - self._plateau) ** 3 + self._window_max
        if target > window:
            window += (min(target, 1.5 * window) - window) / window * acked
        self.congestion_window = int(max(window, self._window_reno) * segment)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        latest = -1.0
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self.packets_lost += 1
            if packet.sent_bytes >= self.large:
                self._large_lost_in_a_row += 1
            latest = max(latest, packet.sent_time or 0.0)
        if latest <= self._recovery_start:
            return  # one reduction for each round trip (RFC 9002 section 7.3.2)
        self._recovery_start = now
        window = self.congestion_window / self._segment
        # Fast convergence (RFC 9438 section 4.7): make room for a newcomer.
        self._window_max = window * (1 + BETA) / 2 if window < self._window_max else window
        self._epoch = None
        self._acked = 0
        self.congestion_window = max(
            int(self.congestion_window * BETA), MINIMUM_WINDOW * self._segment
        )
        self.ssthresh = self.congestion_window

    def on_persistent_congestion(self) -> None:
        self.congestion_window = MINIMUM_WINDOW * self._segment
        self._epoch = None

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        self._rtt_min = min(self._rtt_min, rtt)
        if self.ssthresh is not None:
            return
        self._rtts.append(rtt)
        threshold = min(max(self._rtt_min / 8, MIN_RTT_THRESHOLD), MAX_RTT_THRESHOLD)
        if len(self._rtts) == RTT_SAMPLES and min(self._rtts) > self._rtt_min + threshold:
            self.ssthresh = self.congestion_window


register_congestion_control(CONGESTION_CONTROL, CongestionControl)
