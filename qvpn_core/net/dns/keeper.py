"""A session's DNS: one plan after the other, kept in force although others meddle.

The journal is told before anything changes. It refuses to fight for ever: when somebody takes ours
away again and again it gives in, says so, and the session goes on. It blocks for as long as the
resolver does, see :mod:`qvpn_core.net.dns`; time is passed in, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvpn_core.errors import QvpnError
from qvpn_core.net import dns
from qvpn_core.net.dns import Detection, DnsPlan, DnsRecord
from qvpn_core.net.dns.resolv_conf import PATH

#: Giving in is after more than this many repairs within this many seconds.
MAX_REPAIRS: Final = 5
PERIOD: Final = 60.0
#: Seconds between two attempts of what failed.
RETRY: Final = 1.0


@dataclass(frozen=True, slots=True)
class DnsReport:
    """How names are resolved: by whom and why, and what is wrong, each in words for a person."""

    #: "none" when no resolver was told anything.
    backend: str
    reason: str
    #: Why the tunnel's name servers are not in use although they should be.
    error: str | None = None


_NOTHING: Final = DnsReport("none", "the tunnel has no name servers to use")


class DnsKeeper:
    """The resolver for one device. Every call from one thread at a time.

    `hold` gets all records that undo what is or may be in force, before it changes; it returns when
    another process could use them.
    """

    def __init__(
        self, interface: str, index: int, hold: Callable[[tuple[DnsRecord, ...]], None]
    ) -> None:
        self._interface = interface
        self._index = index
        self._hold = hold
        self._records: tuple[DnsRecord, ...] = ()
        self._plan: DnsPlan | None = None
        self._detection: Detection | None = None
        self._repairs: deque[float] = deque(maxlen=MAX_REPAIRS)
        self._given_in = False
        self._pending = False
        self._retry_at = 0.0
        self._report = _NOTHING

    @property
    def report(self) -> DnsReport:
        """The state as of the last call."""
        return self._report

    @property
    def pending(self) -> bool:
        """Whether to `look` again soon without a reason: what failed may pass, like a restart.

        To ask too often is harmless; it looks once every RETRY seconds.
        """
        return self._pending

    @property
    def repairs(self) -> int:
        """How often ours was put back within the last period."""
        return len(self._repairs)

    @property
    def watch_paths(self) -> tuple[Path, ...]:
        """Files whose change is a reason to `look`; see :func:`qvpn_core.net.dns.watch_paths`."""
        if self._plan is None:
            return ()
        return (PATH,) if self._detection is None else dns.watch_paths(self._detection)

    def set(self, plan: DnsPlan | None) -> DnsReport:
        """Make `plan` be in force from now on, or nothing of ours with None.

        Raises nothing, for a tunnel without names is better than none. What goes wrong is in the
        report, a QvpnError of `hold` included, and `look` tries again.
        """
        if plan == self._plan and self._report.error is None:
            return self._report
        self._plan = plan
        self._repairs.clear()
        self._given_in = False
        return self._put()

    def look(self, now: float) -> DnsReport:
        """See whether ours is still in force, and put it back. For changes of the watched files."""
        if self._plan is None or self._given_in or (self._pending and now < self._retry_at):
            return self._report
        self._retry_at = now + RETRY
        try:
            if self._detection is not None and dns.check(
                self._detection, self._interface, self._index, self._plan
            ):
                return self._in_force(self._detection)
        except QvpnError as error:
            return self._failed(error)
        if self._detection is not None and not self._may_repair(now):
            return self._give_in()
        return self._put()

    def remove(self) -> tuple[QvpnError, ...]:
        """Undo everything; the failures. Their records are still held."""
        self._plan = None
        failures = self._withdraw()
        self._conclude(_NOTHING)
        return failures

    def _put(self) -> DnsReport:
        """From whatever is in force to the plan."""
        if self._plan is None:
            return self._nothing(_NOTHING)
        try:
            found = dns.detect()
            if (objection := dns.objection(found, self._plan)) is not None:
                return self._nothing(DnsReport("none", found.reason, objection))
            records = dns.prepare(found, self._interface, self._index, self._records)
            self._remember(records)
            dns.apply(found, self._interface, self._index, self._plan)
        except QvpnError as error:
            return self._failed(error)
        return self._in_force(found)

    def _in_force(self, detection: Detection) -> DnsReport:
        self._detection = detection
        return self._conclude(DnsReport(detection.backend, detection.reason))

    def _remember(self, records: tuple[DnsRecord, ...]) -> None:
        """Hold `records` and those of other types; the latest is the first to be undone."""
        types = {type(record) for record in records}
        kept = tuple(record for record in self._records if type(record) not in types)
        self._hold((*kept, *records))
        self._records = (*kept, *records)

    def _withdraw(self) -> tuple[QvpnError, ...]:
        failures: list[QvpnError] = []
        stay: list[DnsRecord] = []
        for record in reversed(self._records):
            try:
                dns.restore(record)
            except QvpnError as error:
                failures.append(error)
                stay.insert(0, record)
        self._records = tuple(stay)
        self._detection = None
        try:
            self._hold(self._records)
        except QvpnError as error:  # costs only the news that something is undone
            failures.append(error)
        return tuple(failures)

    def _nothing(self, report: DnsReport) -> DnsReport:
        """Nothing of ours, with `report`; or why something is still there."""
        failures = self._withdraw()
        return self._failed(failures[0]) if failures else self._conclude(report)

    def _failed(self, error: QvpnError) -> DnsReport:
        backend, reason = "none", "the tunnel's name servers are not in use"
        if self._detection is not None:
            backend, reason = self._detection.backend, self._detection.reason
        self._pending = True
        self._report = DnsReport(backend, reason, str(error))
        return self._report

    def _conclude(self, report: DnsReport) -> DnsReport:
        self._pending = False
        self._report = report
        return report

    def _may_repair(self, now: float) -> bool:
        while self._repairs and now - self._repairs[0] > PERIOD:
            self._repairs.popleft()
        if len(self._repairs) == MAX_REPAIRS:
            return False
        self._repairs.append(now)
        return True

    def _give_in(self) -> DnsReport:
        self._given_in = True
        return self._conclude(
            DnsReport(
                self._report.backend,
                self._report.reason,
                f"another program keeps changing the name servers; after {MAX_REPAIRS} repairs in "
                f"{PERIOD:.0f} seconds they are left as it wants them",
            )
        )
