"""The bounded queue in front of a socket.

Packets wait here only while the kernel takes no more: a slow link, a full interface queue. A packet
that waited longer than the limit is worth less than a fresh one to everybody (its sender has
retransmitted, its call has gone on), so the oldest is dropped, by age and by number: head drop,
which also tells an inner TCP about the congestion one queue's length earlier than tail drop would
(RFC 8289 section 3).

While there is no path at all, waiting is another matter: no queue stands in the way of anybody, and
the retransmission that waits here is what lets an inner TCP, which by then retries every few
seconds only, go on in the moment in which a path is back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

QUEUE_PACKETS = 1024
QUEUE_SECONDS = 0.1
#: The longest pause between two retransmissions of a TCP in an outage of 30 seconds, after which
#: there is no session any more (RFC 6298 section 5.5).
HELD_SECONDS = 15.0

EXPIRED = "queue-expired"
FULL = "queue-full"


class SendQueue:
    """A FIFO of packets with a limit in number and in age (seconds)."""

    def __init__(self, packets: int = QUEUE_PACKETS, seconds: float = QUEUE_SECONDS) -> None:
        self._limit = packets
        self._seconds = seconds
        self._batches: deque[tuple[float, int]] = deque()  # time and number of packets of a push
        self.pending: deque[bytes] = deque()
        self._patient = False

    def __len__(self) -> int:
        return len(self.pending)

    def push(self, packets: Iterable[bytes], now: float) -> int:
        """Append; returns how many of the oldest were dropped to keep to the limit."""
        before = len(self.pending)
        self.pending.extend(packets)
        pushed = len(self.pending) - before
        if pushed:
            self._batches.append((now, pushed))
        excess = len(self.pending) - self._limit
        if excess <= 0:
            return 0
        self._drop(excess)
        return excess

    def expire(self, now: float, *, patient: bool = False) -> int:
        """Drop what waited longer than the limit; returns how many.

        `patient` says that what waits does so for a path; the first call after that still keeps
        what has waited until then.
        """
        long, self._patient = patient or self._patient, patient
        oldest = now - (HELD_SECONDS if long else self._seconds)
        expired = 0
        for time, count in self._batches:
            if time >= oldest:
                break
            expired += count
        self._drop(expired)
        return expired

    def clear(self) -> None:
        """Drop everything."""
        self._drop(len(self.pending))

    def taken(self, count: int) -> None:
        """Note that `count` packets were popped from the left of `pending`."""
        while count:
            time, size = self._batches.popleft()
            if size > count:
                self._batches.appendleft((time, size - count))
                return
            count -= size

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self.pending.popleft()
        self.taken(count)
