"""When this machine slept, told by the kernel's clocks. No D-Bus, no polling (decisions/0013).

CLOCK_BOOTTIME goes on while the machine is suspended and CLOCK_MONOTONIC does not, so what their
distance grows by is time slept. Nobody can set either of them: a wall clock that jumps means
nothing here. This module keeps no time of its own and wakes nobody up by itself.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Final

#: Less is not told: a connection that stood still for a second needs no attention.
NOTABLE: Final = 1.0

_TFD_CLOEXEC: Final = os.O_CLOEXEC  # sys/timerfd.h
_TFD_NONBLOCK: Final = os.O_NONBLOCK
_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2
_NEVER: Final = 1 << 33  # seconds since 1970: in the year 2242


def clock_distance() -> float:
    """Seconds that this machine was suspended since it started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class Suspension:
    """Counts time slept. `distance` gives CLOCK_BOOTTIME less CLOCK_MONOTONIC in seconds."""

    def __init__(self, distance: Callable[[], float] = clock_distance) -> None:
        self._distance = distance
        self._seen = distance()

    def slept(self) -> float:
        """Seconds slept since the last call that told of any; 0.0 when not notable."""
        now = self._distance()
        slept = now - self._seen
        if slept < NOTABLE:
            return 0.0
        self._seen = now
        return slept


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


def resume_descriptor() -> int | None:
    """A descriptor that becomes readable when the machine resumes, or when its clock is set.

    A timer that never expires and is cancelled then, timerfd_create(2). Close it and make another
    one after each time. None where the kernel or the C library has none; then nobody is woken up.
    """
    if sys.maxsize < _NEVER:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _TFD_NONBLOCK | _TFD_CLOEXEC
    descriptor: int = libc.timerfd_create(time.CLOCK_REALTIME, flags)
    if descriptor < 0:
        return None
    never = _Itimerspec(value=_Timespec(seconds=_NEVER))
    how = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
    if libc.timerfd_settime(descriptor, how, ctypes.byref(never), None) < 0:
        os.close(descriptor)
        return None
    return descriptor
