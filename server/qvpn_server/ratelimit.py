"""A token bucket, with time passed in."""

from __future__ import annotations


class TokenBucket:
    """Allows `burst` events at once and `rate` per second in the long run."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._updated = 0.0

    def take(self, now: float) -> bool:
        """Whether one more event is allowed at `now` (seconds on a clock that never goes back)."""
        elapsed = max(0.0, now - self._updated)
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._updated = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
