"""Exceptions that nobody expected: logged, and shown once, wherever they were raised.

It never ends the app by itself: what holds the tunnel may be sound, and ends by itself when not.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

from PySide6.QtCore import QObject, Qt, Signal

from qvpn_gui.dialogs.defect import DefectDialog
from qvpn_gui.versions import versions

log = logging.getLogger("qvpn.app")

_LONGEST = 20_000  # characters of a report; a recursion error has many lines


class Defects(QObject):
    """Takes over the hooks of the interpreter and of the loop while it lives."""

    quit = Signal()
    _found = Signal(str)

    def __init__(self, loop: asyncio.AbstractEventLoop, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.dialog: DefectDialog | None = None
        # From whichever thread it comes, windows belong to the first.
        self._found.connect(self._show, Qt.ConnectionType.QueuedConnection)
        self._loop = loop
        self._hooks = sys.excepthook, threading.excepthook
        sys.excepthook = self._raised
        threading.excepthook = self._raised_in_thread
        loop.set_exception_handler(self._raised_in_loop)

    def close(self) -> None:
        """Give the hooks back."""
        sys.excepthook, threading.excepthook = self._hooks
        self._loop.set_exception_handler(None)

    def report(self, error: BaseException) -> None:
        """Log a defect and show it, unless one is shown already."""
        log.error("a defect", exc_info=error)
        lines = (
            f"{versions()}\n\n",
            *traceback.format_exception(error),
        )
        self._found.emit("".join(lines)[:_LONGEST])

    def _show(self, report: str) -> None:
        if self.dialog is not None:
            return
        self.dialog = DefectDialog(report)
        self.dialog.quit.connect(self.quit)
        self.dialog.destroyed.connect(self._closed)
        self.dialog.show()

    def _closed(self) -> None:
        self.dialog = None

    def _raised(
        self, _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.quit.emit()
        else:
            self.report(error)

    def _raised_in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            self.report(arguments.exc_value)

    def _raised_in_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            self.report(error)
        else:
            loop.default_exception_handler(context)
