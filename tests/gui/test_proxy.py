"""Proxies in the app: chosen in a dialog that judges as one types, shown to be copied."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QLabel, QPushButton
from pytestqt.qtbot import QtBot

from qvpn_core.client import profiles
from qvpn_core.client.proxy.options import ProxyOptions
from qvpn_core.client.states import State
from qvpn_core.client.status import Status
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.proxy import ProxyDialog
from qvpn_gui.dialogs.settings import SettingsDialog
from qvpn_gui.session_model import SessionModel
from qvpn_gui.tray.menu import TrayMenu
from qvpn_gui.window.main_window import MainWindow
from qvpn_gui.words import Words
from tests.gui.conftest import Play
from tests.gui.controls import unnamed, unreachable
from tests.gui.samples import STATUSES

SERVED = STATUSES["proxy"]


@pytest.fixture
def dialog(qtbot: QtBot, actions: Actions) -> ProxyDialog:
    dialog = ProxyDialog(actions)
    qtbot.addWidget(dialog)
    dialog.show()
    dialog.start()
    return dialog


@pytest.fixture
def window(qtbot: QtBot, model: SessionModel, actions: Actions, words: Words) -> MainWindow:
    window = MainWindow(model, actions, words)
    qtbot.addWidget(window)
    window.show()
    return window


def seen(window: MainWindow) -> str:
    kinds = (*window.findChildren(QLabel), *window.findChildren(QPushButton))
    return "\n".join(one.text().replace("&", "") for one in kinds if one.isVisibleTo(window))


def test_a_profile_is_a_tunnel_until_somebody_chooses_otherwise(
    dialog: ProxyDialog, actions: Actions, play: Play
) -> None:
    assert dialog.tunnel.isChecked()
    assert not dialog.socks.isEnabled()

    async def story() -> None:
        dialog.proxy.click()
        dialog.http.setText("127.0.0.1:3128")
        dialog.forwards.setPlainText("2222:git.example.org:22\n\n [::1]:5353:[2001:db8::7]:53 \n")
        dialog.ok.click()
        await actions.settled()
        assert profiles.load("home").proxy == ProxyOptions(
            True,
            "127.0.0.1:1080",
            "127.0.0.1:3128",
            ("2222:git.example.org:22", "[::1]:5353:[2001:db8::7]:53"),
        )
        dialog.start()
        assert dialog.proxy.isChecked()
        dialog.tunnel.click()
        dialog.ok.click()
        await actions.settled()

    play(story())
    after = profiles.load("home").proxy
    assert not after.enabled
    assert len(after.forwards) == 2, "what was typed is kept for the next time"


@pytest.mark.parametrize(
    ("socks", "http", "forwards", "told"),
    [
        ("0.0.0.0:1080", "", "", "open to other machines"),
        ("1080", "", "", "is no address to listen at"),
        ("127.0.0.1:99999", "", "", "no port 99999"),
        ("", "", "", "no proxy and no forward"),
        ("127.0.0.1:1080", "127.0.0.1:1080", "", "is used twice"),
        ("", "", "2222:host", "is no forward"),
        ("", "", "\n".join(f"{n}:h.example:1" for n in range(2000, 2065)), "more than 64"),
    ],
)
def test_what_cannot_be_meant_is_told_as_one_types(
    dialog: ProxyDialog, socks: str, http: str, forwards: str, told: str
) -> None:
    dialog.proxy.click()
    dialog.socks.setText(socks)
    dialog.http.setText(http)
    dialog.forwards.setPlainText(forwards)
    assert told in dialog.verdict.text()
    assert not dialog.ok.isEnabled()
    dialog.tunnel.click()
    assert dialog.ok.isEnabled(), "a tunnel needs none of it"


def test_the_dialog_can_be_used_without_eyes_and_without_a_mouse(dialog: ProxyDialog) -> None:
    dialog.proxy.click()
    assert unnamed(dialog) == []
    assert unreachable(dialog) == []


def test_the_window_shows_where_to_connect_and_copies_it(
    window: MainWindow, model: SessionModel
) -> None:
    model.show(SERVED)
    text = seen(window)
    for part in ("Connected", "Disconnect", "127.0.0.1:1080", "To git.example.org:22", "SOCKS"):
        assert part in text
    assert not window.session.kill_switch_row.isVisibleTo(window)
    window.session.proxies.buttons[1].click()
    assert QGuiApplication.clipboard().text() == "127.0.0.1:2222"
    assert window.session.proxies.buttons[1].text() == "Copied"
    assert unnamed(window) == []
    assert unreachable(window) == []


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (State.CONNECTING, "Connecting to the gateway"),
        (State.RECONNECTING, "have to wait"),
        (State.DISCONNECTING, "Ending the proxy"),
        (State.FAILED, "goes directly"),
    ],
)
def test_every_state_says_what_it_means_for_programs(
    window: MainWindow, model: SessionModel, state: State, told: str
) -> None:
    model.show(replace(SERVED, state=state))
    assert told in seen(window)
    assert "Set up routes" not in seen(window)


def test_what_only_a_tunnel_has_is_not_offered_for_a_proxy(
    qtbot: QtBot, model: SessionModel, actions: Actions, words: Words, play: Play
) -> None:
    menu, settings = TrayMenu(model, actions, words), SettingsDialog(actions)
    for widget in (menu, settings):
        qtbot.addWidget(widget)

    async def story() -> None:
        actions.set_proxy("home", ProxyOptions(enabled=True))
        await actions.settled()

    play(story())
    shown = [one.text() for one in menu.actions() if one.isVisible() and one.menu()]
    assert shown == ["&Profile"]
    on = {key for key, row in settings.profile_rows.items() if row.isEnabled()}
    assert on == {"transport"}


@pytest.mark.parametrize("reason", ["polkit-missing", "helper-missing", "network-taken"])
def test_where_a_tunnel_is_not_to_be_had_a_proxy_is_offered(
    qtbot: QtBot, window: MainWindow, model: SessionModel, reason: str
) -> None:
    model.show(Status(state=State.FAILED, profile="home", reason=reason, error="it is so"))
    with qtbot.waitSignal(window.session.proxy):
        window.session.problem.button.click()


def test_another_users_tunnel_is_told_with_what_to_do(
    window: MainWindow, model: SessionModel
) -> None:
    model.show(Status(other_user="ada"))
    text = seen(window)
    assert "Another tunnel is up on this computer" in text
    assert "Ask ada to disconnect" in text
    assert "qvpn unlock" in text
    assert "The tunnel of ada decides where your traffic goes." in text
    assert "Use a proxy instead…" in text
    assert "directly to the internet" not in text
