"""Pictures of every window in every state, light and dark, at 100 % and at 200 %.

``python -m tests.gui.gallery DIRECTORY`` needs no display. Qt takes the scale from the environment
when it starts, so there is a process for each.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PySide6.QtWidgets import QWidget

    from qvpn_gui.session_model import SessionModel

_SCALES = (1, 2)


def main() -> int:
    """Draw everything into the directory that the command line names."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    if "QT_SCALE_FACTOR" in os.environ:
        _draw(directory, int(os.environ["QT_SCALE_FACTOR"]))
        return 0
    for scale in _SCALES:
        with tempfile.TemporaryDirectory(prefix="qvpn-gallery-") as home:
            environment = os.environ | {
                "QT_QPA_PLATFORM": "offscreen",
                "QT_SCALE_FACTOR": str(scale),
                "QVPN_CONFIG_DIR": f"{home}/config",
                "QVPN_STATE_DIR": f"{home}/state",
                "QVPN_RUNTIME_DIR": f"{home}/run",
                "XDG_CONFIG_HOME": home,
                "TZ": "UTC",
            }
            command = [sys.executable, "-m", "tests.gui.gallery", str(directory)]
            subprocess.run(command, env=environment, check=True, timeout=120)
    return 0


def _draw(directory: Path, scale: int) -> None:
    from qvpn_gui.app import make_qt
    from qvpn_gui.loop import Loop
    from tests.gui.samples import dark

    qt = make_qt(["qvpn-gui"])
    with Loop(qt):
        for name, palette in (("light", qt.palette()), ("dark", dark())):
            qt.setPalette(palette)
            for window, widget in _windows():
                if window.startswith(("window", "first")):
                    widget.resize(440, 820)  # the screen without a display is small
                if window == "routes":
                    widget.resize(900, 620)
                widget.show()
                qt.processEvents()
                widget.grab().save(str(directory / f"{window}-{name}-{scale}00.png"))
                widget.hide()
                widget.deleteLater()


def _windows() -> Iterator[tuple[str, object]]:
    from PySide6.QtCore import Qt

    from qvpn_core.client import profiles
    from qvpn_gui.actions import Actions
    from qvpn_gui.dialogs.defect import DefectDialog
    from qvpn_gui.dialogs.profiles import ProfilesDialog
    from qvpn_gui.dialogs.proxy import ProxyDialog
    from qvpn_gui.dialogs.settings import SettingsDialog
    from qvpn_gui.session_model import SessionModel
    from qvpn_gui.window.main_window import MainWindow
    from qvpn_gui.words import Words
    from tests.gui.samples import STATUSES, traffic

    words = Words()
    for name in profiles.names():
        profiles.remove(name)
    model = SessionModel()
    yield "first-run", MainWindow(model, Actions(model), words)
    for name in ("work", "home"):
        profiles.save(profiles.make_profile(name, "vpn.example.org", "x" * 40))
    for name, status in STATUSES.items():
        model = SessionModel()
        window = MainWindow(model, Actions(model), words)
        if status.transport:
            model.samples.extend(traffic())
        model.show(status)
        window.session.button.setFocus(Qt.FocusReason.OtherFocusReason)
        yield f"window-{name}", window
    model = SessionModel()
    yield "profiles", ProfilesDialog(model, Actions(model), words)
    yield "routes", _routes(model)
    yield "settings", SettingsDialog(Actions(model))
    proxy = ProxyDialog(Actions(model))
    proxy.start()
    proxy.proxy.click()
    yield "proxy", proxy
    yield "diagnostics", _diagnostics(model)
    yield "defect", DefectDialog("Traceback (most recent call last):\n  …\nZeroDivisionError")


def _routes(model: SessionModel) -> QWidget:
    from qvpn_core.client.route_list import Entry
    from qvpn_gui.actions import Actions
    from qvpn_gui.dialogs.routes import RoutesDialog

    dialog = RoutesDialog(model, Actions(model))

    async def show() -> None:
        await dialog.start()
        dialog.view.show_mode("only")
        dialog.lines.show(
            [
                Entry("10.0.0.0/8", comment="the office"),
                Entry("10.1.0.0/16", exception=True, comment="guests"),
                Entry("10.1.2.0/24", comment="their printers"),
                Entry("192.168.1.7", exception=True),
            ]
        )
        dialog.view.where.setText("10.1.2.9")
        await dialog._compute()
        await dialog._answer()
        dialog.done(0)  # it is only looked at
        await asyncio.sleep(0)

    asyncio.get_event_loop_policy().get_event_loop().run_until_complete(show())
    return dialog


def _diagnostics(model: SessionModel) -> QWidget:
    from qvpn_core.client.doctor import Facts, examine
    from qvpn_gui.actions import Actions
    from qvpn_gui.dialogs.diagnostics import DiagnosticsDialog

    dialog = DiagnosticsDialog(Actions(model))
    facts = Facts(datetime(2026, 11, 23, 9, 41, tzinfo=UTC), tun=False, synchronised=False)
    dialog.checks.show_findings(examine(facts))
    return dialog


if __name__ == "__main__":
    sys.exit(main())
