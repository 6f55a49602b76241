"""The app is as light or dark as its desktop, in its accent colour and in its font."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtGui import QColor, QFont, QImage, QPalette
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from qvpn_gui import theme
from qvpn_gui.desktop_look import APPEARANCE, INTERFACE, DesktopLook
from qvpn_gui.widgets.buttons import LargeButton
from qvpn_gui.widgets.texts import Dim, Title
from tests.gui.desktop import Desktop, unavailable
from tests.gui.talker import Talker
from tests.world.vpn import BIN, until

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def look(qapp: QApplication, monkeypatch: pytest.MonkeyPatch) -> Iterator[DesktopLook]:
    """A look whose traces are removed."""
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "ubuntu:GNOME")
    font = QFont(qapp.font())
    yield DesktopLook(qapp)
    qapp.setPalette(QPalette())
    qapp.setFont(font)


def test_a_desktop_that_turns_dark_and_light_is_followed(
    qapp: QApplication, look: DesktopLook
) -> None:
    light = qapp.palette().window().color()
    look.show({APPEARANCE: {"color-scheme": 1}})
    assert theme.is_dark(qapp.palette())
    look.show({APPEARANCE: {"color-scheme": 2}})
    assert qapp.palette().window().color() == light
    look.show({APPEARANCE: {"color-scheme": 0}})
    assert qapp.palette().window().color() == light


def test_secondary_text_that_is_there_can_be_read_after_the_turn(
    qapp: QApplication, look: DesktopLook, qtbot: QtBot
) -> None:
    text = Dim("vpn.example.org")
    qtbot.addWidget(text)
    for scheme in (1, 2, 1):
        look.show({APPEARANCE: {"color-scheme": scheme}})
        qapp.processEvents()  # Qt tells widgets later
        written = text.palette().windowText().color()
        assert theme.contrast(written, qapp.palette().window().color()) >= 4.5


def test_its_accent_colour_is_used_and_stays_when_it_turns_dark(
    qapp: QApplication, look: DesktopLook
) -> None:
    look.show({APPEARANCE: {"color-scheme": 0, "accent-color": [0.9, 0.4, 0.1]}})
    orange = QColor.fromRgbF(0.9, 0.4, 0.1).name()
    assert qapp.palette().color(QPalette.ColorRole.Accent).name() == orange
    look.show({APPEARANCE: {"color-scheme": 1}})
    assert qapp.palette().color(QPalette.ColorRole.Accent).name() == orange
    assert theme.contrast(theme.accent(qapp.palette()), QColor("white")) >= 4.5
    look.show({APPEARANCE: {"accent-color": [-1.0, -1.0, -1.0]}})
    assert qapp.palette().color(QPalette.ColorRole.Accent).name() != orange


def test_its_font_is_used_also_by_titles_that_are_there(
    qapp: QApplication, look: DesktopLook, qtbot: QtBot
) -> None:
    title, button = Title("Protected"), LargeButton()
    for widget in (title, button):
        qtbot.addWidget(widget)
    look.show({INTERFACE: {"font-name": "Noto Sans 11"}})
    assert (qapp.font().family(), qapp.font().pointSizeF()) == ("Noto Sans", 11)
    qapp.processEvents()  # Qt tells widgets later
    assert title.font().pointSizeF() == pytest.approx(11 * 1.7, abs=0.1)
    assert button.font().pointSizeF() == pytest.approx(11 * 1.15, abs=0.1)
    look.show({INTERFACE: {"text-scaling-factor": 1.5}})
    assert qapp.font().pointSizeF() == pytest.approx(16.5)


@pytest.mark.parametrize(
    "settings",
    [
        {INTERFACE: {"font-name": "Noto Sans"}},
        {INTERFACE: {"font-name": "Noto Sans 1e9"}},
        {INTERFACE: {"font-name": 11, "text-scaling-factor": -3.0}},
        {APPEARANCE: {"accent-color": "red", "color-scheme": "dark"}},
        {APPEARANCE: {"accent-color": [0.1, 0.2]}, "another": {"key": 1}},
    ],
)
def test_what_makes_no_sense_changes_nothing(
    qapp: QApplication, look: DesktopLook, settings: dict[str, dict[str, Any]]
) -> None:
    before = QPalette(qapp.palette()), QFont(qapp.font())
    look.show(settings)
    assert (qapp.palette(), qapp.font()) == before


def test_kde_is_left_to_qt(
    qapp: QApplication, look: DesktopLook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "KDE")
    look.show({APPEARANCE: {"color-scheme": 1}, INTERFACE: {"font-name": "Noto Sans 20"}})
    assert not theme.is_dark(qapp.palette())
    assert qapp.font().pointSizeF() < 20


@pytest.mark.timeout(90)
def test_the_real_app_follows_a_real_portal(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)

    def shade() -> int:
        """How light the window is, near its lower edge: 0 to 255."""
        file = str(tmp_path / "window.png")
        desktop.tool("import", "-window", desktop.window("qvpn"), file)
        picture = QImage(file)
        return picture.pixelColor(12, picture.height() - 12).lightness()

    with tempfile.TemporaryDirectory(prefix="qvpn-look-") as own, Desktop() as desktop:
        environment = desktop.environment | {
            "XDG_CURRENT_DESKTOP": "GNOME",
            "QVPN_CONFIG_DIR": f"{own}/config",
            "QVPN_STATE_DIR": f"{own}/state",
            "QVPN_RUNTIME_DIR": f"{own}/run",
        }
        settings = json.dumps({APPEARANCE: {"color-scheme": 1}})
        module = (sys.executable, "-m", "tests.gui.portal", settings)
        with Talker(*module, env=environment) as portal:
            assert portal.hear() == "ready"
            app = subprocess.Popen(
                [str(BIN / "qvpn-gui")],
                env=environment,
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                until(lambda: 20 < shade() < 80, "a dark window")
                assert portal.ask(f"{APPEARANCE} color-scheme 2") == "changed"
                until(lambda: shade() > 180, "a light window")
            finally:
                app.terminate()
                try:
                    app.wait(20)
                except subprocess.TimeoutExpired:
                    app.kill()
                    app.wait(5)
