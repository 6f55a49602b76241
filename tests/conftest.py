"""What holds for every test of the project."""

from __future__ import annotations

import ctypes
import gc
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

_WINDOWS = Path(__file__).parent / "gui"

#: The library of Qt's that is missing first on a machine without a desktop.
_QT_NEEDS = "libEGL.so.1"

# How long an example takes says what else the machine does; timeouts are for the whole test.
hypothesis.settings.register_profile("qvpn", deadline=None)
hypothesis.settings.load_profile("qvpn")

# A shell starts what runs in the background with SIGINT ignored, and so it would be in everything
# that a test starts in order to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _qt_runs() -> bool:
    try:
        ctypes.CDLL(_QT_NEEDS)
    except OSError:
        return False
    return True


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the tests of windows where Qt cannot be loaded."""
    return True if collection_path == _WINDOWS and not _qt_runs() else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Destroy what a test of windows leaves before any other thread can.

    Python collects cycles on whichever thread allocates, the test runner's own included. A socket
    notifier of Qt's that is destroyed there stays in the event loop, which then uses freed memory.
    """
    if not item.path.is_relative_to(_WINDOWS):
        return (yield)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.enable()


def pytest_report_header() -> str:
    """Say so."""
    return "" if _qt_runs() else f"tests/gui is skipped: {_QT_NEEDS} is missing (Debian: libegl1)"
