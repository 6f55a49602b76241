"""What the app knows about the session, whoever started it: this app, or `qvpn up` in a terminal.

One source, the agent's control socket: a stream of statuses while an agent runs, a watch on the
runtime directory while none does. It changes nothing; that is `actions.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace
from PySide6.QtCore import QFileSystemWatcher, QObject, Signal

from qvpn_core.client import control, idle, instance, paths, remote
from qvpn_core.client.states import FirewallPolicy, State
from qvpn_core.client.status import Proxy, Status
from qvpn_core.errors import QvpnError

#: States in which a tunnel is wanted, so that the button says "Disconnect".
WANTED: Final = frozenset({State.CONNECTING, State.CONNECTED, State.RECONNECTING})
#: States without a session; the last may also belong to one that goes on.
_OVER: Final = frozenset({State.DISCONNECTED, State.FAILED, State.BLOCKED})

#: Samples of traffic that are kept: two minutes of one a second.
HISTORY: Final = 120
#: Changes come at any moment; a rate over less than this is only noise.
_SHORTEST: Final = 0.4  # seconds
#: Samples that the loss is told of.
_LOSS_SAMPLES: Final = 60
#: Fewer packets say nothing about a share of them.
_LOSS_PACKETS: Final = 50
#: While a socket is there that nobody answers, or an agent that is stuck.
_AGAIN: Final = (0.05, 0.2, 1.0, 5.0)  # seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """The traffic of one interval, which ended at `at` (seconds, monotonic)."""

    at: float
    #: Bits per second.
    sent: float
    received: float
    #: Packets of the interval.
    packets: int
    lost: int


class SessionModel(QObject):
    """The latest status and the recent traffic. `run` is a task for as long as the app lives."""

    #: The status changed in any field.
    changed = Signal()
    #: The state changed: the one before and the one now.
    moved = Signal(object, object)
    #: `samples` has one more, or none any more.
    sampled = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.status = Status()
        self.samples: deque[Sample] = deque(maxlen=HISTORY)
        self._counted: tuple[float, Status] | None = None
        self._news = asyncio.Event()
        self._expected = False
        #: A failure that no agent has left a note of.
        self._failure: Status | None = None

    @property
    def state(self) -> State:
        """The state of the tunnel."""
        return self.status.state

    @property
    def wanted(self) -> bool:
        """Whether somebody wants a tunnel now."""
        return self.state in WANTED

    @property
    def loss(self) -> float | None:
        """The share of sent packets that were lost of late, from 0 to 1; None when too few were."""
        recent = list(self.samples)[-_LOSS_SAMPLES:]
        packets = sum(sample.packets for sample in recent)
        if packets < _LOSS_PACKETS:
            return None
        return min(1.0, sum(sample.lost for sample in recent) / packets)

    async def run(self) -> None:
        """Follow agents as they come and go, until cancelled."""
        paths.make_private(paths.runtime_dir())
        watcher = QFileSystemWatcher(self)
        watcher.directoryChanged.connect(self._news.set)
        failures = 0
        while True:
            # One of them may come to be later; what is watched already is not watched twice.
            watcher.addPaths([str(place) for place in idle.places() if place.is_dir()])
            self._news.clear()
            heard = False
            with suppress(QvpnError):
                async for status in remote.follow():
                    heard = True
                    self._expected = False
                    self._failure = None
                    self.show(status)
            if heard:
                self._gone()
            self.look()
            failures = 0 if heard else failures + 1
            wait = None
            if control.socket_path().exists():
                wait = _AGAIN[min(failures, len(_AGAIN) - 1)]
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()

    def expect(self, profile: str | None, proxies: tuple[Proxy, ...] = ()) -> None:
        """Show at once that `profile` is about to be connected; with None, that it is not.

        `proxies` are what will be served instead of a tunnel.

        What an agent says about itself wins.
        """
        if profile is not None:
            self._expected = True
            self.show(
                Status(state=State.CONNECTING, profile=profile, since=_now(), proxies=proxies)
            )
        elif self._expected:
            self._expected = False
            self.show(Status())

    def fail(self, profile: str, error: QvpnError) -> None:
        """Show why a tunnel could not even be tried."""
        self._expected = False
        self._failed(
            Status(
                state=State.FAILED,
                profile=profile,
                since=_now(),
                reason=error.reason,
                error=str(error),
            )
        )

    def forget_failure(self) -> None:
        """The user has taken notice of a failure that is over."""
        instance.forget_failure()
        self._failure = None
        self.look()

    def look(self) -> None:
        """Show what there is without a session, unless there is one."""
        if self.state not in _OVER or self._expected:
            return
        status = idle.idle_status()
        if self._failure is not None and status.state is State.DISCONNECTED:
            status = replace(
                self._failure, kill_switch=status.kill_switch, firewall=status.firewall
            )
        # Where another user's tunnel is up, what holds is his and lets him out.
        if status.firewall is FirewallPolicy.BLOCK and status.other_user is None:
            # Without an agent, nobody could let a browser out to a portal.
            status = replace(status, state=State.BLOCKED, portal=None)
        self.show(status)

    def _gone(self) -> None:
        """The agent is gone. What it said last stays when it was its end, else it died."""
        before = self.status
        if before.state in (State.DISCONNECTED, State.FAILED):
            return
        if before.state is State.DISCONNECTING:
            self.show(Status())
            return
        self._failed(
            Status(
                state=State.FAILED,
                profile=before.profile,
                gateway=before.gateway,
                since=_now(),
                reason="agent-gone",
                error="the program that held the tunnel has ended; the network is as it was before",
            )
        )

    def _failed(self, status: Status) -> None:
        self._failure = status
        self.show(status)
        self.look()

    def show(self, status: Status) -> None:
        """Take a status for the present one."""
        before, self.status = self.status, status
        self._count(status)
        if status != before:
            self.changed.emit()
        if status.state is not before.state:
            self.moved.emit(before.state, status.state)

    def _count(self, status: Status) -> None:
        now = time.monotonic()
        if status.transport is None or status.proxies:
            self._counted = None
            if self.samples and status.state not in WANTED:
                self.samples.clear()
                self.sampled.emit()
            return
        if self._counted is None or status.tx_packets < self._counted[1].tx_packets:
            self._counted = (now, status)  # a new session counts from zero
            return
        then, before = self._counted
        seconds = now - then
        if seconds < _SHORTEST:
            return
        self._counted = (now, status)
        self.samples.append(
            Sample(
                at=now,
                sent=8 * (status.tx_bytes - before.tx_bytes) / seconds,
                received=8 * max(0, status.rx_bytes - before.rx_bytes) / seconds,
                packets=status.tx_packets - before.tx_packets,
                lost=max(0, status.lost_packets - before.lost_packets),
            )
        )
        self.sampled.emit()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
