"""Path MTU discovery for one QUIC path, sans-IO: which probe to send now, and what size holds.

RFC 8899 (DPLPMTUD) with the names of its section 5, for QUIC as in RFC 9000 section 14.3. Sizes are
UDP payload bytes. The search starts at a base that every QUIC path carries and asks for two sizes
at once: the largest, which most paths carry, and the floor, below which the tunnel is useless. What
remains is halved. It does not build or send packets and never looks at ICMP, which anybody can
forge.
"""

from __future__ import annotations

from enum import Enum

BASE_PLPMTU = 1200  # RFC 9000 section 14
MAX_PROBES = 3  # RFC 8899 section 5.1.2
RAISE_TIMER = 600.0  # seconds, RFC 8899 section 5.1.1
SEARCH_STEP = 8  # bytes; a finer result is not worth another round trip


class Phase(Enum):
    """RFC 8899 section 5.2, with BASE and SEARCHING in one: the floor is probed as part of it."""

    SEARCHING = "searching"
    SEARCH_COMPLETE = "search-complete"
    ERROR = "error"  # even the floor does not pass


class PathMtuDiscovery:
    """The search on one path.

    `floor` and `ceiling` are the smallest useful and the largest possible size in bytes. `size` is
    what may be used now: validated by an acknowledged probe, or the base.
    """

    def __init__(self, *, floor: int, ceiling: int) -> None:
        if not BASE_PLPMTU <= floor <= ceiling:
            raise ValueError("BASE_PLPMTU <= floor <= ceiling must hold")
        self._floor = floor
        self._ceiling = ceiling
        self._restart()

    def _restart(self, *, too_big: int | None = None) -> None:
        self.phase = Phase.SEARCHING
        self.size = BASE_PLPMTU
        # The smallest size known or taken not to pass.
        self._too_big = self._ceiling + 1 if too_big is None else too_big
        self._losses: dict[int, int] = {}  # losses so far of each size being probed
        self._in_flight: set[int] = set()
        self._confirming = False
        self._raise_at: float | None = None

    def moved(self, *, floor: int, ceiling: int) -> None:
        """The connection takes another path: everything is asked anew.

        The size found so far stays in use while it is asked for first. A tunnel that shrinks for
        two round trips at each move would cost more than the few packets that a narrower path
        loses: inner connections remember a smaller MTU for minutes.
        """
        size, broken = self.size, self.phase is Phase.ERROR
        self._floor, self._ceiling = floor, ceiling
        self._restart()
        if not broken and floor <= size <= ceiling:
            self.size = size
            self._confirming = True

    @property
    def confirmed(self) -> bool:
        """Whether `size` is known to pass, and not only hoped for since a move."""
        return not self._confirming

    @property
    def usable(self) -> bool:
        """Whether the floor is known to pass."""
        return self.size >= self._floor

    @property
    def timer(self) -> float | None:
        """When to call `probes` again although nothing happened, or None."""
        return self._raise_at

    def probes(self, now: float) -> list[int]:
        """The sizes to probe at `now`; each is in flight until acknowledged or lost."""
        if self._raise_at is not None and now >= self._raise_at:
            self._raise_at = None
            self.phase = Phase.SEARCHING
            self._too_big = self._ceiling + 1
        wanted = self._candidates() - self._in_flight
        self._in_flight |= wanted
        return sorted(wanted)

    def _candidates(self) -> set[int]:
        if self._confirming:
            return {self.size}
        if self.phase is not Phase.SEARCHING:
            return set()
        if self._too_big == self._ceiling + 1:
            top = {self._ceiling}
            return top | {self._floor} if self.size < self._floor else top
        if self.size < self._floor:
            return {self._floor}
        return {(self.size + self._too_big) // 2}

    def probe_acked(self, size: int, now: float) -> None:
        """A probe of `size` bytes arrived: the path carries it."""
        self._in_flight.discard(size)
        self._losses.pop(size, None)
        if size >= self._too_big or self.phase is Phase.ERROR:
            return  # late news of an earlier search
        if size == self.size:
            self._confirming = False
        self.size = max(self.size, size)
        self._settle(now)

    def probe_lost(self, size: int, now: float) -> None:
        """A probe of `size` bytes was lost, perhaps for its size, perhaps by chance."""
        if size not in self._in_flight:
            return
        self._in_flight.discard(size)
        self._losses[size] = self._losses.get(size, 0) + 1
        if self._losses[size] >= MAX_PROBES:
            self._exclude(size, now)

    def refused(self, size: int, now: float) -> None:
        """The local interface does not take `size` bytes (EMSGSIZE), probe or not."""
        self._in_flight.discard(size)
        self._exclude(size, now)

    def suspect(self) -> None:
        """Packets of the present size are lost while small ones pass (RFC 8899 section 4.3).

        The size is proven again before anything changes, for a full queue looks the same and a
        lower MTU is remembered by every inner connection for minutes.
        """
        if self.phase is not Phase.ERROR and self.size > BASE_PLPMTU:
            self._confirming = True

    def _exclude(self, size: int, now: float) -> None:
        self._losses.pop(size, None)
        if size <= self.size:
            if size > BASE_PLPMTU:
                self._restart(too_big=size)
        else:
            self._too_big = min(self._too_big, size)
        if self._too_big <= self._floor:
            self.phase = Phase.ERROR
        else:
            self._settle(now)

    def _settle(self, now: float) -> None:
        if self.size < self._floor or self._too_big - self.size > SEARCH_STEP:
            if self.size < self._ceiling:
                return
        self.phase = Phase.SEARCH_COMPLETE
        self._losses.clear()
        self._raise_at = now + RAISE_TIMER if self.size < self._ceiling else None
