"""Notices, remedies, settings, drawings and the tray's menu."""

from __future__ import annotations

import stat
from ipaddress import ip_interface, ip_network
from itertools import combinations
from pathlib import Path

import pytest
from PySide6.QtGui import QColor, QImage
from PySide6.QtWidgets import QApplication, QMenu
from pytestqt.qtbot import QtBot

from qvpn_core.client.explain import warnings
from qvpn_core.client.planner import GatewayOffer, RoutePolicy, SystemState, plan_network
from qvpn_core.client.states import State
from qvpn_core.net.survey import Attached
from qvpn_gui import icons, remedies, settings, theme
from qvpn_gui.actions import Actions
from qvpn_gui.notices import PATIENCE, Notice, Notices
from qvpn_gui.remedies import Remedy
from qvpn_gui.session_model import SessionModel
from qvpn_gui.settings import Memory, Policy, Settings
from qvpn_gui.tray.menu import TrayMenu
from qvpn_gui.widgets.graph import ceiling
from qvpn_gui.words import Words, sentence
from tests.gui.conftest import Play
from tests.gui.samples import STATUSES

# Notices


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (State.DISCONNECTED, State.CONNECTING),
        (State.CONNECTING, State.CONNECTED),
        (State.CONNECTED, State.DISCONNECTING),
        (State.DISCONNECTING, State.DISCONNECTED),
        (State.FAILED, State.CONNECTING),
        (State.CONNECTED, State.DISCONNECTED),
    ],
)
def test_what_the_user_asked_for_is_not_told(before: State, after: State) -> None:
    notices = Notices()
    assert notices.moved(before, after, 0.0, seen=False) is None
    assert notices.due is None


def test_a_loss_is_told_when_it_lasts_and_then_its_end() -> None:
    notices = Notices()
    assert notices.moved(State.CONNECTED, State.RECONNECTING, 10.0, seen=False) is None
    assert notices.due == 10.0 + PATIENCE
    assert notices.late(seen=False) is Notice.LOST
    assert notices.moved(State.RECONNECTING, State.CONNECTED, 20.0, seen=False) is Notice.BACK


def test_a_short_loss_is_not_worth_a_word() -> None:
    notices = Notices()
    notices.moved(State.CONNECTED, State.RECONNECTING, 10.0, seen=False)
    assert notices.moved(State.RECONNECTING, State.CONNECTED, 11.0, seen=False) is None
    assert notices.due is None


def test_who_looks_at_the_window_is_told_nothing() -> None:
    notices = Notices()
    notices.moved(State.CONNECTED, State.RECONNECTING, 10.0, seen=True)
    assert notices.late(seen=True) is None
    assert notices.moved(State.RECONNECTING, State.FAILED, 11.0, seen=True) is None


def test_an_end_that_nobody_asked_for_is_told() -> None:
    for before in (State.CONNECTING, State.CONNECTED, State.RECONNECTING):
        assert Notices().moved(before, State.FAILED, 0.0, seen=False) is Notice.FAILED
        assert Notices().moved(before, State.BLOCKED, 0.0, seen=False) is Notice.BLOCKED


def test_the_failure_of_a_former_life_is_no_news() -> None:
    assert Notices().moved(State.DISCONNECTED, State.FAILED, 0.0, seen=False) is None


def test_a_sentence_begins_large_but_not_with_our_name() -> None:
    assert sentence("nothing answers") == "Nothing answers"
    assert sentence("qvpn waits") == "qvpn waits"


def test_what_keeps_the_lan_is_told_as_the_apps_own_switch(words: Words) -> None:
    state = SystemState(attached=(Attached("wlan0", ip_network("192.168.1.0/24")),))
    offer = GatewayOffer((ip_interface("10.86.0.2/32"),), (ip_network("0.0.0.0/0"),))
    plan = plan_network(RoutePolicy(), offer, state, 1300)
    [line] = warnings(RoutePolicy(), plan, state, None)
    assert words.warning(line) == (
        "192.168.1.0/24 on wlan0 is out of reach. To keep it, switch on “Reach the local network” "
        "in the settings."
    )
    assert words.warning("another line") == "Another line"


# Remedies


def test_network_settings_are_the_desktops_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "ubuntu:GNOME")
    assert remedies.remedy("unreachable", blocked=False) is Remedy.RETRY
    for program in ("gnome-control-center", "nm-connection-editor"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    assert remedies.network_settings() == (str(tmp_path / "gnome-control-center"), "network")
    assert remedies.remedy("unreachable", blocked=False) is Remedy.NETWORK
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "sway")
    assert remedies.network_settings() == (str(tmp_path / "nm-connection-editor"),)


def test_a_block_is_released_whatever_led_to_it() -> None:
    assert remedies.remedy("unreachable", blocked=True) is Remedy.RELEASE
    assert remedies.remedy(None, blocked=False) is Remedy.COPY


def test_a_sign_in_page_that_can_be_opened_is_what_helps_also_behind_a_block() -> None:
    for blocked in (False, True):
        assert remedies.remedy("captive-portal", blocked=blocked, portal=True) is Remedy.SIGN_IN
    assert remedies.remedy("captive-portal", blocked=True) is Remedy.RELEASE


# Settings and memory


def test_settings_come_back_and_a_broken_one_costs_only_itself(tmp_path: Path) -> None:
    assert settings.load_settings() == Settings()
    wanted = Settings(connect_at_start='ho"me\n', notifications=False)
    settings.save_settings(wanted)
    assert settings.load_settings() == wanted
    file = tmp_path / "config" / "app.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text('notifications = "maybe"\nconnect_at_start = "home"\nunknown = 1\n')
    assert settings.load_settings() == Settings(connect_at_start="home")
    file.write_text("[[[")
    assert settings.load_settings() == Settings()


def test_memory_is_bounded_and_a_damaged_one_is_empty(tmp_path: Path) -> None:
    memory = Memory()
    for number in range(10):
        memory = memory.used("home", Policy("only", (f"10.{number}.0.0/16",)))
    memory = memory.used("home", Policy("only", ("10.8.0.0/16",)))
    assert [policy.destinations[0] for policy in memory.recent["home"]] == [
        "10.8.0.0/16",
        "10.9.0.0/16",
        "10.7.0.0/16",
        "10.6.0.0/16",
    ]
    settings.save_memory(memory)
    assert settings.load_memory() == memory
    (tmp_path / "state" / "app.json").write_bytes(b"\xff{")
    assert settings.load_memory() == Memory()


def test_a_policy_as_text_is_the_policy() -> None:
    policy = Policy("all-except", (), ("192.0.2.0/24",))
    assert Policy.of(policy.parse()) == policy
    assert Policy.of(RoutePolicy()) == Policy("all")


# Drawings


def alpha(drawing: str, size: int = 16) -> list[int]:
    """How much of each pixel a drawing covers: what is left of it without colour."""
    image = icons.pixmap(drawing, size, QColor("black")).toImage()
    image = image.convertToFormat(QImage.Format.Format_ARGB32)
    return [image.pixelColor(x, y).alpha() for y in range(size) for x in range(size)]


def test_states_differ_at_16_pixels_without_colour(qapp: QApplication) -> None:
    shapes = {
        state: alpha(theme.DRAWINGS[state][0])
        for state in State
        if state is not State.DISCONNECTING
    }
    for one, other in combinations(shapes, 2):
        differing = sum(abs(a - b) > 96 for a, b in zip(shapes[one], shapes[other], strict=True))
        assert differing >= 8, f"{one} and {other} look alike"


def test_what_passes_moves(qapp: QApplication) -> None:
    for state in (State.CONNECTING, State.RECONNECTING, State.DISCONNECTING):
        frames = [alpha(drawing) for drawing in theme.DRAWINGS[state]]
        assert len({tuple(frame) for frame in frames}) == len(frames) > 2


@pytest.mark.parametrize("panel", ["#ffffff", "#f0f0f0", "#2b2b2d", "#1d1d20", "#000000"])
def test_states_stand_out_from_light_and_from_dark_panels(panel: str) -> None:
    for state in State:
        assert theme.contrast(theme.color(state), QColor(panel)) >= 3


@pytest.mark.parametrize(
    ("peak", "end"),
    [(0, 10_000), (10_100, 20_000), (49_000, 50_000), (999_000, 1_000_000), (3e9, 5e9)],
)
def test_the_axis_ends_at_a_round_number(peak: float, end: float) -> None:
    assert ceiling(peak) == end


# The tray's menu


@pytest.fixture
def menu(qtbot: QtBot, model: SessionModel, actions: Actions, words: Words) -> TrayMenu:
    menu = TrayMenu(model, actions, words)
    qtbot.addWidget(menu)
    return menu


def entries(menu: QMenu) -> list[str]:
    """The visible entries, a tick before what holds."""
    return [
        ("✓ " if action.isChecked() else "") + action.text().replace("&", "")
        for action in menu.actions()
        if action.isVisible() and not action.isSeparator()
    ]


def submenu(menu: QMenu, title: str) -> QMenu:
    (found,) = (one for one in menu.findChildren(QMenu) if one.title().replace("&", "") == title)
    return found


def test_the_menu_has_everything_and_leads_with_the_state(
    menu: TrayMenu, model: SessionModel
) -> None:
    after = ["Profile", "Routes", "Kill switch", "Open qvpn", "Quit"]
    assert entries(menu) == ["Not connected", "Connect", *after]
    model.show(STATUSES["connected"])
    first, second, *rest = entries(menu)
    assert first.startswith("Protected: vpn.example.org, since ")
    assert (second, rest) == ("Disconnect", after)
    model.show(STATUSES["blocked"])
    assert entries(menu)[1:3] == ["Try again", "Release the block"]
    model.show(STATUSES["portal"])
    assert entries(menu)[1:3] == ["Disconnect", "Open the sign-in page"]


def test_profiles_and_modes_of_the_kill_switch_are_ticked(
    menu: TrayMenu, actions: Actions, play: Play
) -> None:
    assert entries(submenu(menu, "Profile")) == ["✓ home", "work"]

    async def story() -> None:
        submenu(menu, "Profile").actions()[1].trigger()
        assert actions.profile == "work"
        assert entries(submenu(menu, "Profile")) == ["home", "✓ work"]
        kill_switch = submenu(menu, "Kill switch")
        assert entries(kill_switch) == ["✓ Off", "While connected", "Always"]
        kill_switch.actions()[1].trigger()
        await actions.settled()
        assert entries(kill_switch) == ["Off", "✓ While connected", "Always"]

    play(story())


def test_recent_route_policies_are_offered(
    menu: TrayMenu, actions: Actions, play: Play, model: SessionModel
) -> None:
    async def story() -> None:
        actions.set_policy(Policy("only", ("10.0.0.0/8", "fd00::/8")))
        await actions.settled()
        actions.set_policy(Policy("all"))
        await actions.settled()
        routes = submenu(menu, "Routes")
        assert entries(routes) == [
            "✓ Everything",
            "Only 2 network(s): 10.0.0.0/8, …",
            "Choose…",
        ]
        routes.actions()[1].trigger()
        await actions.settled()
        profile = actions.stored_profile()
        assert profile is not None
        assert profile.policy.mode == "only"

    play(story())


def test_the_menu_shows_the_policy_in_force_not_the_stored_one(
    menu: TrayMenu, model: SessionModel
) -> None:
    model.show(STATUSES["connected-only"])
    assert entries(submenu(menu, "Routes"))[1].startswith("✓ Only 2 network(s)")
