"""Shows the scene that each line of its input names, on the display of the environment, one by one.

``python -m tests.gui.showing`` answers each line with one of its own when the scene is on the
screen: its name, or what went wrong. It ends with its input.
"""

from __future__ import annotations

import sys
import time

from PySide6.QtCore import QEvent, QSocketNotifier
from PySide6.QtWidgets import QApplication, QMenu
from shiboken6 import isValid

_PATIENCE = 5.0  # seconds that a window gets to appear


def main() -> int:
    """Show until there is nothing left to show."""
    from qvpn_gui.app import make_qt
    from qvpn_gui.loop import Loop
    from tests.gui.scenes import SCENES, stage

    qt = make_qt(["qvpn-gui"])
    with Loop(qt) as loop:
        for line in sys.stdin:
            with stage(loop.run_until_complete) as on:
                widget = SCENES[line.strip()](on)
                if isinstance(widget, QMenu):
                    widget.popup(qt.primaryScreen().availableGeometry().topLeft())
                else:
                    widget.show()
                    widget.activateWindow()
                end = time.monotonic() + _PATIENCE
                while time.monotonic() < end and not widget.windowHandle().isExposed():
                    qt.processEvents()
                qt.processEvents()
                print(line.strip(), flush=True)
                _until_input(qt)
                if isValid(widget):  # some are gone as soon as nobody looks
                    widget.hide()
                    widget.deleteLater()
                qt.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
    return 0


def _until_input(qt: QApplication) -> None:
    """Answer whoever reads the tree, until the next line is there."""
    notifier = QSocketNotifier(sys.stdin.fileno(), QSocketNotifier.Type.Read)
    notifier.activated.connect(qt.quit)
    qt.exec()
    notifier.setEnabled(False)


if __name__ == "__main__":
    sys.exit(main())
