"""asyncio on Qt's event loop, fast enough to carry packets.

qasync gives every callback a Qt timer of its own, coarse and kept until it fires even when it was
cancelled, and switches a socket notifier off and on around every wake-up. At thousands of packets a
second that is most of the work, so timers, ready callbacks and readers are done here as asyncio
does them: one queue, one heap, one Qt timer for each. Sub-processes, streams, signals and the rest
are qasync's. It is pinned to qasync 0.28, whose private names it overrides.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from itertools import takewhile
from typing import Any

from PySide6.QtCore import QSocketNotifier, Qt, QTimer
from PySide6.QtWidgets import QApplication
from qasync import QEventLoop

#: Seconds that callbacks may take before Qt gets a turn to paint and to hear the user.
SLICE = 0.008
#: Cancelled timers are swept out when there are more of them than of others, and at least these.
_SWEEP = 100
_THREADS = 4


class Loop(QEventLoop):  # type: ignore[misc]  # qasync has no types
    """The event loop of the app; `run_until_complete` runs Qt's."""

    def __init__(self, app: QApplication) -> None:
        self._waiting: deque[asyncio.Handle] = deque()
        self._heap: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0  # keeps timers of one moment in order
        self._cancelled = 0
        self._soon = QTimer(interval=0, singleShot=True)
        self._soon.timeout.connect(self._run_waiting)
        self._clock = QTimer(singleShot=True, timerType=Qt.TimerType.PreciseTimer)
        self._clock.timeout.connect(self._run_due)
        super().__init__(app)
        # Python collects cycles on whichever thread allocates, and with them Qt's objects, which
        # only this thread may touch. So they are collected here, and nowhere else.
        self._collected_elsewhere = gc.isenabled()
        gc.disable()
        # Ours start when they are needed; qasync would start ten at once.
        self.set_default_executor(ThreadPoolExecutor(_THREADS, "qvpn worker"))

    def close(self) -> None:
        if self._collected_elsewhere:
            gc.enable()
        self._soon.stop()
        self._clock.stop()
        for notifiers in (self._read_notifiers, self._write_notifiers):
            for fd in tuple(notifiers):
                _forget(notifiers, fd)
        super().close()

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._add_callback(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._waiting.append(handle)
        self._write_to_self()  # wakes the loop, which runs what waits
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        handle._scheduled = True  # type: ignore[attr-defined]  # it tells us when it is cancelled
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, handle))
        if self._heap[0][2] is handle:
            self._set_clock()
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._cancelled += 1
        if self._cancelled > _SWEEP and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].cancelled()]
            heapq.heapify(self._heap)
            self._cancelled = 0
            self._set_clock()

    def _add_callback(self, handle: asyncio.Handle, delay: float = 0) -> asyncio.Handle:
        self._waiting.append(handle)
        if not self._soon.isActive():
            self._soon.start()
        return handle

    def _read_from_self(self) -> None:
        super()._read_from_self()
        self._run_waiting()

    def _run_waiting(self) -> None:
        """Run what waits, but not what that adds, and not for longer than a slice."""
        end = time.monotonic() + SLICE
        for _ in range(len(self._waiting)):
            handle = self._waiting.popleft()
            if not handle.cancelled():
                handle._run()
            if time.monotonic() > end:
                break
        if self._waiting and not self._soon.isActive():
            self._soon.start()
        _collect()

    def _run_due(self) -> None:
        now = self.time()
        while self._heap and self._heap[0][0] <= now:
            handle = heapq.heappop(self._heap)[2]
            handle._scheduled = False  # type: ignore[attr-defined]
            if handle.cancelled():
                self._cancelled -= 1
            else:
                self._add_callback(handle)
        self._set_clock()
        _collect()

    def _set_clock(self) -> None:
        while self._heap and self._heap[0][2].cancelled():
            heapq.heappop(self._heap)
            self._cancelled -= 1
        if not self._heap:
            self._clock.stop()
            return
        # Rounded up: a timer that comes too early would find nothing due and spin.
        wait = max(0.0, self._heap[0][0] - self.time())
        self._clock.start(min(int(wait * 1000) + 1, 1 << 30))

    def _add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        return self._watch(self._read_notifiers, QSocketNotifier.Type.Read, fd, callback, args)

    def _add_writer(self, fd: Any, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        return self._watch(self._write_notifiers, QSocketNotifier.Type.Write, fd, callback, args)

    def _remove_reader(self, fd: Any) -> bool:
        return not self.is_closed() and _forget(self._read_notifiers, fd)

    def _remove_writer(self, fd: Any) -> bool:
        return not self.is_closed() and _forget(self._write_notifiers, fd)

    def _watch(
        self,
        notifiers: dict[Any, QSocketNotifier],
        kind: QSocketNotifier.Type,
        fd: Any,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> asyncio.Handle:
        self._check_closed()
        _forget(notifiers, fd)
        handle = asyncio.Handle(callback, args, self)
        notifier = QSocketNotifier(fd if isinstance(fd, int) else fd.fileno(), kind)

        def ready() -> None:
            # An event may still be on its way when the descriptor is given up.
            if notifiers.get(fd) is notifier and not handle.cancelled():
                handle._run()

        notifier.activated.connect(ready)
        notifiers[fd] = notifier
        return handle


def _collect() -> None:
    """Collect the youngest generations that are due, as the interpreter would."""
    counts, thresholds = gc.get_count(), gc.get_threshold()
    if counts[0] > thresholds[0]:
        due = (count > threshold for count, threshold in zip(counts, thresholds, strict=True))
        generation = sum(takewhile(bool, due)) - 1
        gc.collect(generation)


def _forget(notifiers: dict[Any, QSocketNotifier], fd: Any) -> bool:
    notifier = notifiers.pop(fd, None)
    if notifier is None:
        return False
    notifier.setEnabled(False)
    notifier.deleteLater()
    return True
