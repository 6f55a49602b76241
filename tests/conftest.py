"""What holds for every test of the project."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path

#: The library of Qt's that is missing first on a machine without a desktop.
_QT_NEEDS = "libEGL.so.1"

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
    windows = collection_path == Path(__file__).parent / "gui"
    return True if windows and not _qt_runs() else None


def pytest_report_header() -> str:
    """Say so."""
    return "" if _qt_runs() else f"tests/gui is skipped: {_QT_NEEDS} is missing (Debian: libegl1)"
