"""``qvpn-gui`` with a watch on its event loop: ``python -m tests.gui.watched_app FILE [OPTION]...``

A timer of 10 ms notes how much later than that it comes. What the thread spent waiting for a
processor (`/proc/self/schedstat`, its second number, nanoseconds) is taken off, so that a busy
machine is not taken for a busy loop. The file gets the pauses over `LIMIT`: when each ended, its
length, and how much of it the thread computed; for the rest it waited for others, who may have
waited for a processor themselves: the X server, or a thread that imports. Every second, a file
beside it (`.turns`) gets how many turns were how late: a list whose index is milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Final

from PySide6.QtCore import QObject, Qt, QTimer

from qvpn_gui import app
from qvpn_gui.__main__ import main

#: No turn of the loop may take longer, in seconds.
LIMIT: Final = 0.05
#: Nor wait for others for longer, on the busiest machine.
_STILL: Final = 2.0
_INTERVAL: Final = 0.01
_MOST: Final = 100
#: Of the file of turns; what is later counts as this.
_LATEST: Final = 500  # milliseconds


def judge(file: Path, busy: float) -> None:
    """Fail if a loop was blocked for too long, where computing takes `busy` times what it takes
    on a machine that does nothing else."""
    pauses: list[tuple[float, float, float]] = json.loads(file.read_text())
    print(f"turns of the event loop over {LIMIT * 1000:.0f} ms: {pauses or 'none'}")
    assert max((computed for _, _, computed in pauses), default=0) < LIMIT * busy, "it computed"
    assert max((blocked for _, blocked, _ in pauses), default=0) < _STILL, "it waited"


def _waited() -> float:
    """Seconds that this thread was ready to run and did not."""
    fields = Path("/proc/thread-self/schedstat").read_text().split()
    return int(fields[1]) / 1e9


class Watch(QObject):
    """Writes at every pause, since nobody knows when the app ends."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._pauses: list[tuple[float, float, float]] = []
        self._turns = [0] * (_LATEST + 1)
        self._written = 0.0
        self._timer = QTimer(self, interval=round(_INTERVAL * 1000))
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self._begin = self._last = time.monotonic()
        self._last_waited, self._last_computed = _waited(), time.thread_time()
        self._timer.start()
        self._write()

    def _tick(self) -> None:
        now, waited, spent = time.monotonic(), _waited(), time.thread_time()
        blocked = now - self._last - (waited - self._last_waited) - _INTERVAL
        computed = spent - self._last_computed
        self._last, self._last_waited, self._last_computed = now, waited, spent
        self._turns[max(0, min(_LATEST, round(blocked * 1000)))] += 1
        if now - self._written >= 1:
            self._written = now
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(self._turns))
            new.replace(self._file.with_suffix(".turns"))
        if blocked > LIMIT and len(self._pauses) < _MOST:
            self._pauses.append(
                (round(now - self._begin, 3), round(blocked, 4), round(computed, 4))
            )
            self._write()

    def _write(self) -> None:
        self._file.write_text(json.dumps(self._pauses))


_live = app.live


async def _watched(*arguments: object) -> None:
    life = asyncio.ensure_future(_live(*arguments))  # type: ignore[arg-type]
    # The first second is the start, which has a measure of its own: windows are made and painted.
    # On a busy machine it takes longer.
    begin, waited = time.monotonic(), _waited()
    while not life.done() and time.monotonic() - begin - (_waited() - waited) < 1:
        await asyncio.wait([life], timeout=0.1)
    watch = Watch(FILE)
    await life
    watch.deleteLater()


if __name__ == "__main__":
    FILE = Path(sys.argv[1])
    sys.argv[:2] = ["qvpn-gui"]  # by which X knows its windows
    app.live = _watched
    sys.exit(main())
