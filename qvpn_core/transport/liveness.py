"""When a silent peer is worth a question, another socket, or giving up. Sans-IO.

QUIC itself gives up after 30 seconds without a packet. A tunnel knows earlier: somebody inside asks
for something, packets leave that call for an acknowledgement (RFC 9000 section 13.2.1), and none
comes. What is counted are questions without an answer and not seconds, so that a machine that slept
or was busy does not blame its peer, and a path that loses every fifth packet or takes half a second
is not given up: dozens of questions would have to be lost.

It judges silence only. It sends nothing, opens nothing, and never sees a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

#: Seconds from the first unanswered packet to the first question, at least; also two probe
#: timeouts, so that QUIC's own retransmission (RFC 9002 section 6.2) comes first.
PATIENCE: Final = 0.25
#: Seconds between two questions, at least; also half a probe timeout.
INTERVAL: Final = 0.2
#: After so many questions without an answer there is doubt: a NAT or a firewall between may have a
#: dead entry for this socket, or the peer has forgotten us. Both can be found out.
DOUBT_AFTER: Final = 4
#: After so many, ten seconds for a near peer, the path will hardly come back by itself.
GIVE_UP_AFTER: Final = 48


class Step(Enum):
    """What to do about a silence."""

    WAIT = "wait"
    #: Send a PING.
    ASK = "ask"
    #: Find out whether another socket helps, and whether the peer answers others.
    DOUBT = "doubt"
    #: Stop waiting.
    GIVE_UP = "give-up"


class Liveness:
    """The judgement of one connection. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._asked = 0
        self._due = 0.0
        self._interval = INTERVAL

    def due(self, since: float | None, probe_timeout: Callable[[], float]) -> float | None:
        """When to call `step`; None while there is nothing to wait for.

        `since` is when the peer was first asked for what it has not answered, None when it owes
        nothing; `probe_timeout` tells how long an answer usually takes at most. Asked for each
        packet that is sent, so it is only called when a silence begins.
        """
        if since != self._since:
            self._since = since
            if since is not None:
                self._asked = 0
                usual = probe_timeout()
                self._interval = max(INTERVAL, usual / 2)
                self._due = since + max(PATIENCE, 2 * usual)
        return None if since is None else self._due

    def restart(self) -> None:
        """Count anew: what went unanswered was asked on another path."""
        self._since = None

    def step(self, now: float, since: float | None, probe_timeout: Callable[[], float]) -> Step:
        """What to do at `now`."""
        due = self.due(since, probe_timeout)
        if due is None or now < due:
            return Step.WAIT
        if self._asked >= GIVE_UP_AFTER:
            return Step.GIVE_UP
        self._asked += 1
        self._due = now + self._interval
        return Step.DOUBT if self._asked == DOUBT_AFTER else Step.ASK
