"""Who is the first usable way to a gateway, out of both transports and all its addresses: sans-IO.

QUIC starts, TLS follows a moment later, the addresses of each follow one another with the families
in turn (RFC 8305). Whoever has shaken hands waits for its turn, and only one at a time asks the
gateway for anything: a gateway keeps one session for each device, and the request that came last is
the one that it keeps. Time is passed in; it opens nothing, that is `reach.py`, and remembers
nothing, that is `qvpn_core.client.networks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest
from typing import Final

from qvpn_core.transport.dial import Endpoint
from qvpn_core.transport.interface import TransportName

#: Seconds after QUIC that TLS starts, and between two addresses (RFC 8305 section 8).
HEAD_START: Final = 0.3
STAGGER: Final = 0.25
#: Seconds that a TLS connection waits for QUIC, which is preferred when it is close.
GRACE: Final = 0.1
#: Addresses that are tried; a name may have any number.
MAX_ENDPOINTS: Final = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """One connection to try: `at` so many seconds after the start, or when those before failed."""

    transport: TransportName
    endpoint: Endpoint
    at: float


def schedule(
    endpoints: Sequence[Endpoint], transports: Sequence[TransportName], head_start: float
) -> list[Entry]:
    """When to try what. The first of `transports` starts at once, the next after `head_start`.

    Address families alternate, beginning with that of the first endpoint (RFC 8305 section 4).
    """
    first = [each for each in endpoints if each.family == endpoints[0].family]
    others = [each for each in endpoints if each.family != endpoints[0].family]
    pairs = zip_longest(first, others)
    mixed = [each for pair in pairs for each in pair if each is not None][:MAX_ENDPOINTS]
    entries = [
        Entry(transport, endpoint, place * head_start + number * STAGGER)
        for place, transport in enumerate(transports)
        for number, endpoint in enumerate(mixed)
    ]
    return sorted(entries, key=lambda entry: entry.at)


class _State(Enum):
    WAITING = "waiting"
    #: Under way.
    RUNNING = "running"
    #: Has shaken hands and waits for its turn.
    READY = "ready"
    #: Asks the gateway; nobody else does.
    ASKING = "asking"
    FAILED = "failed"


class Race:
    """Who starts when, and whose turn it is. Entries are named by their number."""

    def __init__(self, entries: Sequence[Entry], now: float) -> None:
        self._entries = entries
        self._begun = now
        self._states = [_State.WAITING] * len(entries)
        self._ready_since = [now] * len(entries)

    @property
    def lost(self) -> bool:
        """Whether every entry has failed."""
        return all(state is _State.FAILED for state in self._states)

    def due(self, now: float) -> list[int]:
        """The entries to start now; each is named once."""
        started = []
        for number, entry in enumerate(self._entries):
            waits = self._states[number] is _State.WAITING
            if waits and (self._begun + entry.at <= now or self._all_failed_before(number)):
                self._states[number] = _State.RUNNING
                started.append(number)
        return started

    def ready(self, number: int, now: float) -> None:
        """An entry has shaken hands."""
        self._states[number] = _State.READY
        self._ready_since[number] = now

    def failed(self, number: int) -> None:
        """An entry is out."""
        self._states[number] = _State.FAILED

    def turn(self, now: float) -> int | None:
        """The entry that may ask now, named once; None while nobody may, or somebody does."""
        if _State.ASKING in self._states:
            return None
        for number, entry in enumerate(self._entries):
            if self._states[number] is not _State.READY:
                continue
            if entry.transport == "quic" or self._quic_is_far(number, now):
                self._states[number] = _State.ASKING
                return number
        return None

    def next_at(self) -> float | None:
        """When `due` or `turn` may say something new, if nothing happens before."""
        times = [
            self._begun + entry.at
            for entry, state in zip(self._entries, self._states, strict=True)
            if state is _State.WAITING
        ]
        if _State.ASKING not in self._states:
            times += [
                since + GRACE
                for since, state in zip(self._ready_since, self._states, strict=True)
                if state is _State.READY
            ]
        return min(times, default=None)

    def _all_failed_before(self, number: int) -> bool:
        """Whether there is nothing to wait for: what is earlier has failed."""
        return all(state is _State.FAILED for state in self._states[:number])

    def _quic_is_far(self, number: int, now: float) -> bool:
        running = any(
            entry.transport == "quic" and state is not _State.FAILED
            for entry, state in zip(self._entries, self._states, strict=True)
        )
        return not running or now >= self._ready_since[number] + GRACE
