"""What a bad link does to packets, one direction of it, without I/O.

:class:`Line` takes packets with the time at which they entered and gives them back when they are to
leave; every choice comes from one seeded generator, so the same packets meet the same fate. Times
are seconds on any one clock. What a line holds is bounded.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass
from typing import Final

from tests.world.packets import flip_bit, is_udp, packet_too_big

#: How long a reordered packet is held back, in seconds, beyond its own delay.
REORDER_HOLD: Final = 0.01
#: The most packets inside one line, whatever its delay: a second of full ones at 300 Mbit/s.
CAPACITY: Final = 25_000


@dataclass(frozen=True, slots=True)
class Impairment:
    """One direction's faults. The default is a perfect link.

    `delay` and `jitter` are seconds; jitter adds between nothing and itself and keeps the order.
    `loss`, `reorder`, `duplicate` and `corrupt` are probabilities per packet: a reordered packet is
    held back by REORDER_HOLD so that those behind it overtake, a corrupted one has one bit flipped
    (see :func:`tests.world.packets.flip_bit`). `rate` is in bits per second of IP packets, with a
    drop-tail queue of `queue` packets before it. Packets over `mtu` bytes vanish, or with
    `mtu_icmp` are answered with ICMP too big. `block_udp` drops all UDP, or that from or to one
    port.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate: float | None = None
    queue: int = 100
    mtu: int | None = None
    mtu_icmp: bool = False
    block_udp: bool | int = False

    def __post_init__(self) -> None:
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        if self.delay < 0 or self.jitter < 0:
            raise ValueError("delay and jitter are seconds, not negative")
        if (self.rate is not None and self.rate <= 0) or self.queue < 1:
            raise ValueError("rate is bits per second above 0, queue at least 1 packet")


@dataclass(slots=True)
class LineCounters:
    """What happened to the packets that entered one line."""

    entered: int = 0
    left: int = 0
    left_bytes: int = 0
    lost: int = 0
    queue_full: int = 0
    too_big: int = 0
    blocked: int = 0
    reordered: int = 0
    duplicated: int = 0
    corrupted: int = 0
    #: Refused by the kernel on the far side (a device that is down, a header it will not take).
    refused: int = 0


class Line:
    """One direction of a link.

    `hop` is the pair of IPv4 and IPv6 addresses that its ICMP messages come from.
    """

    def __init__(self, seed: int, hop: tuple[str, str]) -> None:
        self.counters = LineCounters()
        self._impairment = Impairment()
        self._random = random.Random(seed)
        self._hop = hop
        self._held: list[tuple[float, int, bytes]] = []
        self._sequence = 0
        self._transmitted: deque[float] = deque()
        self._last_due = 0.0

    def impair(self, impairment: Impairment) -> None:
        """From now on, treat packets so. Those already inside keep the fate they met."""
        self._impairment = impairment

    def push(self, packet: bytes, now: float) -> bytes | None:
        """A packet enters at `now`. Returns the ICMP message to send back to its sender, if any."""
        link, counters, chance = self._impairment, self.counters, self._random.random
        counters.entered += 1
        if link.block_udp and is_udp(packet, None if link.block_udp is True else link.block_udp):
            counters.blocked += 1
            return None
        if link.mtu is not None and len(packet) > link.mtu:
            counters.too_big += 1
            return packet_too_big(packet, link.mtu, *self._hop) if link.mtu_icmp else None
        if link.loss and chance() < link.loss:
            counters.lost += 1
            return None
        sent = self._transmit(len(packet), now)
        if sent is None or len(self._held) >= CAPACITY:
            counters.queue_full += 1
            return None
        if link.corrupt and chance() < link.corrupt:
            counters.corrupted += 1
            packet = flip_bit(packet, chance())
        due = sent + link.delay + (chance() * link.jitter if link.jitter else 0.0)
        if link.reorder and chance() < link.reorder:
            counters.reordered += 1
            due += REORDER_HOLD
        else:
            due = self._last_due = max(due, self._last_due)
        self._hold(due, packet)
        if link.duplicate and chance() < link.duplicate:
            counters.duplicated += 1
            self._hold(due, packet)
        return None

    def pop(self, now: float) -> list[bytes]:
        """The packets that leave the line by `now`, in order."""
        leaving = []
        held = self._held
        while held and held[0][0] <= now:
            packet = heapq.heappop(held)[2]
            self.counters.left += 1
            self.counters.left_bytes += len(packet)
            leaving.append(packet)
        return leaving

    @property
    def next_due(self) -> float | None:
        """When the next packet leaves, or None when the line is empty."""
        return self._held[0][0] if self._held else None

    def _transmit(self, size: int, now: float) -> float | None:
        """When the last bit is on the wire; None when the queue before it is full."""
        rate = self._impairment.rate
        if rate is None:
            return now
        waiting = self._transmitted
        while waiting and waiting[0] <= now:
            waiting.popleft()
        if len(waiting) >= self._impairment.queue:
            return None
        end = (waiting[-1] if waiting else now) + size * 8 / rate
        waiting.append(end)
        return end

    def _hold(self, due: float, packet: bytes) -> None:
        self._sequence += 1
        heapq.heappush(self._held, (due, self._sequence, packet))
