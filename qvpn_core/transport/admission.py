"""Who may start a handshake while many want to, and who stays: sans-IO, time passed in.

A handshake costs the gateway some milliseconds of processor and a stranger almost nothing. So
there are few at once, beyond them an address must be proven first by Retry (RFC 9000 section
8.1.2), and then no address gets more than its share. It refuses to judge addresses that were not
proven: whoever forges them would lock out their owners.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from ipaddress import ip_address
from typing import Generic, Protocol, TypeVar

from qvpn_core.transport import settings

#: Handshakes per second, in the long run and at once, from which addresses must be proven.
FREE_RATE, FREE_BURST = 50.0, 100.0
#: And what one proven address gets from there on. Many people share one behind a provider's NAT.
SOURCE_RATE, SOURCE_BURST = 8.0, 32.0
_SOURCES = 4096  # remembered; the one that was silent for longest is forgotten first
_PREFIX6 = 7  # bytes: the /56 that a customer is given


class Stranger(Protocol):
    """A connection without a tunnel."""

    @property
    def answered(self) -> bool:
        """Whether its last request was answered."""


_Stranger = TypeVar("_Stranger", bound=Stranger)


class Strangers(Generic[_Stranger]):
    """The connections that carry no tunnel, yet or any more. Of these only the newest stay."""

    def __init__(self) -> None:
        self._met: dict[_Stranger, None] = {}

    def meet(self, stranger: _Stranger) -> bool:
        """One more; whether they are too many now, and the owner must `dismiss`."""
        self._met[stranger] = None
        return len(self._met) > settings.STRANGERS

    def forget(self, stranger: _Stranger) -> None:
        """It carries a tunnel, or has ended. Harmless for who is none."""
        self._met.pop(stranger, None)

    def dismiss(self) -> _Stranger | None:
        """Who has to go, so that there are not too many: forgotten here, closed by the owner."""
        if len(self._met) <= settings.STRANGERS:
            return None
        # One that was answered, since a device's request may still be under way; the oldest.
        answered = (each for each in self._met if each.answered)
        chosen = next(answered, next(iter(self._met)))
        del self._met[chosen]
        return chosen


class Verdict(Enum):
    """What becomes of the first packet of a connection."""

    ACCEPT = "accept"
    RETRY = "retry"
    DROP = "drop"


class _Bucket:
    """A token bucket."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._tokens, self._updated = rate, burst, burst, 0.0

    def take(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Admission:
    """The bookkeeping of one gateway. `now` is in seconds on a clock that never goes back."""

    def __init__(self) -> None:
        #: Connections whose handshake is not complete; kept by the owner.
        self.half_open = 0
        self._free = _Bucket(FREE_RATE, FREE_BURST)
        self._sources: OrderedDict[bytes, _Bucket] = OrderedDict()

    def judge(self, host: str, *, proven: bool, now: float) -> Verdict:
        """What to do with an Initial from `host`; `proven` when it carries a valid Retry token."""
        if proven:
            if self.half_open >= settings.HALF_OPEN_LIMIT or not self._bucket(host).take(now):
                return Verdict.DROP
            return Verdict.ACCEPT
        if self.half_open >= settings.HALF_OPEN_LIMIT:
            return Verdict.DROP
        if self.half_open >= settings.RETRY_ABOVE or not self._free.take(now):
            return Verdict.RETRY
        return Verdict.ACCEPT

    def _bucket(self, host: str) -> _Bucket:
        packed = ip_address(host.partition("%")[0]).packed
        source = packed if len(packed) == 4 else packed[:_PREFIX6]
        bucket = self._sources.pop(source, None) or _Bucket(SOURCE_RATE, SOURCE_BURST)
        self._sources[source] = bucket
        if len(self._sources) > _SOURCES:
            self._sources.popitem(last=False)
        return bucket
