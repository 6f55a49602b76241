"""The main window says in every state what it means, and offers the one thing to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from PySide6.QtCore import QLocale, Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QLabel, QPushButton
from pytestqt.qtbot import QtBot

from qvpn_core.client import profiles
from qvpn_core.client.status import Status
from qvpn_gui.actions import Actions
from qvpn_gui.session_model import SessionModel
from qvpn_gui.window.main_window import MainWindow
from qvpn_gui.words import STAGES, Words
from tests.gui.controls import unnamed, unreachable
from tests.gui.samples import STATUSES, traffic


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    before = QLocale()
    QLocale.setDefault(QLocale(QLocale.Language.English, QLocale.Country.UnitedKingdom))
    yield
    QLocale.setDefault(before)


@pytest.fixture
def window(qtbot: QtBot, model: SessionModel, actions: Actions, words: Words) -> MainWindow:
    window = MainWindow(model, actions, words)
    qtbot.addWidget(window)
    window.show()
    return window


def texts(window: MainWindow) -> str:
    """Every text that is seen."""
    kinds = (*window.findChildren(QLabel), *window.findChildren(QPushButton))
    return "\n".join(one.text().replace("&", "") for one in kinds if one.isVisibleTo(window))


@pytest.mark.parametrize(
    ("name", "title", "button", "also"),
    [
        ("disconnected", "Not connected", "Connect", ["directly to the internet", "home.example"]),
        ("connecting", "Connecting…", "Cancel", ["Identify this device", "vpn.example.org"]),
        ("connected", "Protected", "Disconnect", ["All traffic", "10.86.0.7", "23.4 ms", "1393"]),
        ("connected-only", "Connected", "Disconnect", ["the rest goes directly"]),
        ("reconnecting", "Reconnecting…", "Disconnect", ["connection was lost", "Try now"]),
        ("disconnecting", "Disconnecting…", "Please wait…", ["as it was"]),
        ("failed", "Connection failed", "Try again", ["does not answer", "UDP is not blocked"]),
        ("portal", "Reconnecting…", "Disconnect", ["wants you to sign in", "sign-in page"]),
        ("blocked", "Blocked", "Try again", ["lets nothing out", "Release the block"]),
    ],
)
def test_each_state_says_what_it_means_and_what_can_be_done(
    window: MainWindow, model: SessionModel, name: str, title: str, button: str, also: list[str]
) -> None:
    model.show(STATUSES[name])
    assert window.session.title.text() == title
    assert window.session.button.text().replace("&", "") == button
    seen = texts(window)
    for words in also:
        assert words in seen


@pytest.mark.parametrize("name", STATUSES)
def test_every_control_has_a_name_and_is_reached_by_the_keyboard(
    window: MainWindow, model: SessionModel, name: str
) -> None:
    model.show(STATUSES[name])
    assert unnamed(window) == []
    assert unreachable(window) == []


def test_without_a_profile_there_is_the_first_run_page_and_nothing_else(
    window: MainWindow, actions: Actions, qtbot: QtBot
) -> None:
    assert "Welcome" not in texts(window)
    for name in ("home", "work"):
        profiles.remove(name)
    actions.profiles_moved()
    seen = texts(window)
    assert "Welcome" in seen
    assert "Connect\n" not in seen
    assert unnamed(window) == []
    assert unreachable(window) == []


def test_stages_are_ticked_off_in_their_order(window: MainWindow, model: SessionModel) -> None:
    for number, stage in enumerate(STAGES):
        model.show(replace(STATUSES["connecting"], stage=stage))
        marks = [mark.done for mark, _ in window.session.progress._lines.values()]
        assert marks == [True] * number + [None] + [False] * (len(STAGES) - number - 1)


def test_details_can_be_copied_for_somebody_who_helps(
    window: MainWindow, model: SessionModel
) -> None:
    model.show(replace(STATUSES["failed"], reason="certificate", error="not the pinned key"))
    (button,) = window.session.problem.findChildren(QPushButton)
    button.click()
    copied = QGuiApplication.clipboard().text()
    assert "not the pinned key" in copied
    assert "reason certificate" in copied
    assert "Qt " in copied
    assert button.text() == "Copied"


def test_a_command_that_fails_beside_the_session_is_told_at_the_top(
    window: MainWindow, actions: Actions
) -> None:
    actions.failed.emit(profiles.UsageError("the disk is full", "remove something"))
    assert "the disk is full: remove something" in texts(window)


def test_what_comes_from_the_network_is_never_markup(
    window: MainWindow, model: SessionModel
) -> None:
    model.show(replace(STATUSES["failed"], error="<b>bold</b> <img src=x>", gateway="<u>x</u>"))
    for label in window.findChildren(QLabel):
        assert label.textFormat() is Qt.TextFormat.PlainText


def test_the_graph_and_the_rates_follow_the_traffic(
    window: MainWindow, model: SessionModel
) -> None:
    model.samples.extend(traffic())
    model.show(STATUSES["connected"])
    model.sampled.emit()
    seen = texts(window)
    assert "Mbit/s" in seen
    assert "1.3 GB" in seen
    assert "below 0.1 %" in seen or "0." in seen
    assert len(window.session.traffic.graph._points) == 120


@pytest.mark.parametrize(
    "direction", [Qt.LayoutDirection.RightToLeft, Qt.LayoutDirection.LeftToRight]
)
def test_every_state_can_be_drawn_in_either_direction_and_in_a_narrow_window(
    window: MainWindow, model: SessionModel, qapp: QApplication, direction: Qt.LayoutDirection
) -> None:
    window.setLayoutDirection(direction)
    window.resize(window.minimumSizeHint())
    for status in STATUSES.values():
        model.show(status)
        qapp.processEvents()
        picture = window.grab()
        assert not picture.isNull()
        page = window.session
        assert page.minimumSizeHint().width() <= window.width(), "nothing is cut off at the side"


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (0, "0 bit/s"),
        (999, "999 bit/s"),
        (1000, "1.00 kbit/s"),
        (12_345, "12.3 kbit/s"),
        (999_499, "999 kbit/s"),
        (999_600, "1.00 Mbit/s"),
        (2.5e9, "2.50 Gbit/s"),
        (4e12, "4000 Gbit/s"),
    ],
)
def test_rates_have_three_digits_and_a_sensible_unit(words: Words, bits: float, text: str) -> None:
    assert words.rate(bits).replace(",", "") == text


def test_a_status_from_the_first_moment_of_a_session_is_shown_without_numbers(
    window: MainWindow, model: SessionModel
) -> None:
    model.show(Status(state=STATUSES["connected"].state, profile="work"))
    assert window.session.title.text() == "Connected"
