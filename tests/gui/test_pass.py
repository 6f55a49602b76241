"""The whole product as an ordinary user meets it, from the first start to the last click.

The real app, helper, pkexec, polkitd, polkit agent and gateway, on a desktop with a panel; nothing
of the machine's own takes part. Keys are pressed; what came of it is read from the control socket,
the kernel, the buses. Pictures go to `QVPN_SCREENSHOTS`, or nowhere.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.gui import desktop as desktops
from tests.gui import seat as seats
from tests.gui.desktop import Panel
from tests.gui.seat import DIALOG, PASSWORD, Person, Seat
from tests.gui.test_desktop import App, connect, has_owner, notifier_items, press, running
from tests.integration.conftest import namespaces_work  # noqa: F401
from tests.world import Namespace, plan, probes, snapshot
from tests.world import desk as desks
from tests.world.desk import SESSION, Desk
from tests.world.vpn import Vpn, processes, until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

REFUSED: Final = (
    "the password was wrong or was not entered, so the network stays as it is: try again"
)
ROUTES: Final = "What uses the tunnel: .*"


@pytest.fixture(scope="module")
def vpn(
    namespaces_work: None,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Vpn]:
    """A gateway that runs."""
    for reason in (desktops.unavailable(), desks.unavailable(), seats.unavailable()):
        if reason:
            pytest.skip(reason)
    with Vpn(tmp_path_factory.mktemp("pass")) as vpn:
        yield vpn


@pytest.fixture
def desk(vpn: Vpn, tmp_path: Path) -> Iterator[Desk]:
    """A machine in the place of the first client, with the helper installed."""
    with Desk(vpn.world.client, tmp_path) as desk:
        yield desk


@contextmanager
def as_before(host: Namespace) -> Iterator[None]:
    """The network is as it was, and soon nothing of ours runs; what else a desktop started may."""
    before = snapshot(host)
    yield
    until(lambda: snapshot(host) == before, "the network is as it was")
    ours = ("qvpn-helper", "qvpn-gui", "watched_app", "qvpn_core", "pkexec")
    until(
        lambda: not [line for line in processes(host) if any(word in line for word in ours)],
        f"nothing of ours runs: {processes(host)}",
    )


def route(app: App, address: str) -> str:
    """The device that the kernel would send to an address by."""
    words = app.client.host.run(["ip", "route", "get", address]).stdout.split()
    return words[words.index("dev") + 1]


@pytest.mark.parametrize(("panel", "way"), [("lxqt-panel", "password"), ("trayer", "rule")])
def test_the_whole_way_of_an_ordinary_user(vpn: Vpn, desk: Desk, panel: Panel, way: str) -> None:
    """Asked once, by a real dialog, or never, by a rule of the administrator's."""
    host = vpn.world.client
    with Seat(desk, "ada", panel) as seat, as_before(host):
        if way == "rule":
            desk.allow(ada=SESSION)
        else:
            seat.start_agent()
        ada = Person(seat)
        if panel == "lxqt-panel":
            until(lambda: has_owner(seat, "org.kde.StatusNotifierWatcher"), "a panel")
        with running(seat, ada) as app:
            seat.window("qvpn")
            until(lambda: notifier_items(seat) or seat.docked(), "an icon in the panel")
            app.picture(f"pass-{way}-1-first-run")

            seat.copy(vpn.gateway.command("invite", f"laptop-{way}").stdout.strip())
            seat.keys("ctrl+v")
            app.picture(f"pass-{way}-2-invite")
            seat.keys("Return")
            until(lambda: any((ada.config / "profiles").glob("*.toml")), "a profile")

            connect(app)
            if way == "password":
                seat.window(DIALOG)
                app.picture(f"pass-{way}-3-permission")
                assert app.state() == "connecting"
                assert probes.source_seen(host, plan.ALPHA.v4) == plan.ROUTER4
                seat.answer(PASSWORD)
            app.reach("connected")
            assert probes.source_seen(host, plan.ALPHA.v4) == plan.GATEWAY4
            got = probes.download(host, plan.ALPHA.v4, 8 << 20)
            print(f"{way}: download as an ordinary user: {got.mbit_per_second:.0f} Mbit/s")
            app.picture(f"pass-{way}-4-connected")

            assert route(app, plan.BETA.v4) == route(app, plan.ALPHA.v4) == "qvpn0"
            use_only(app, plan.NETS[0][0], picture=f"pass-{way}-5-routes")
            until(lambda: route(app, plan.BETA.v4) == "eth0", "the rest goes directly")
            assert route(app, plan.ALPHA.v4) == "qvpn0"
            assert probes.source_seen(host, plan.BETA.v4) == plan.ROUTER4
            assert probes.source_seen(host, plan.ALPHA.v4) == plan.GATEWAY4
            app.picture(f"pass-{way}-6-split")

            vpn.gateway.stop(signal.SIGKILL if way == "password" else signal.SIGTERM)
            app.reach("reconnecting", 60)
            seen_in_panel(app, "Reconnecting…")
            app.picture(f"pass-{way}-7-reconnecting")
            vpn.gateway.start()
            app.reach("connected", 60)
            seen_in_panel(app, "Connected")
            assert probes.source_seen(host, plan.ALPHA.v4) == plan.GATEWAY4

            press(app, "alt+d", "disconnected")
            assert probes.source_seen(host, plan.ALPHA.v4) == plan.ROUTER4
            if way == "password":
                seat.tool("pkcheck", "--revoke-temp")  # as polkit does after five minutes
            connect(app)
            app.reach("connected")
            assert seat.windows(DIALOG) == []
            press(app, "alt+d", "disconnected")
            assert seat.asked() == (1 if way == "password" else 0)
            print(f"{way}: asked {seat.asked()} times for 2 connections and a loss")
            app.picture(f"pass-{way}-8-disconnected")
            seat.keys("ctrl+q")
            app.process.wait(20)


def test_an_administrator_can_have_the_password_asked_each_time(vpn: Vpn, desk: Desk) -> None:
    """What polkit does not keep, the app does not keep either."""
    with Seat(desk, "ada") as seat, as_before(vpn.world.client):
        desk.rules(
            f"polkit.addRule(function(action) {{ if (action.id == '{SESSION}') "
            "return polkit.Result.AUTH_ADMIN; });"
        )
        seat.start_agent()
        ada = Person(seat)
        ada.add_profile(vpn.gateway.token("strict"))
        with running(seat, ada) as app:
            seat.window("qvpn")
            for _ in range(2):
                connect(app)
                seat.answer(PASSWORD)
                app.reach("connected")
                press(app, "alt+d", "disconnected")
            assert seat.asked() == 2
            print(f"where nothing is kept: asked {seat.asked()} times for 2 connections")
            seat.keys("ctrl+q")
            app.process.wait(20)


def test_who_does_not_give_the_password_is_told_so(vpn: Vpn, desk: Desk) -> None:
    """Cancelled, wrong, right, forbidden: the words say which, and the network is untouched."""
    host = vpn.world.client
    with Seat(desk, "ada") as seat, as_before(host):
        seat.start_agent()
        ada = Person(seat)
        ada.add_profile(vpn.gateway.token("reluctant"))
        before = snapshot(host)
        with running(seat, ada) as app:
            seat.window("qvpn")
            connect(app)
            seat.window(DIALOG)
            assert snapshot(host) == before
            seat.keys("Escape")
            assert why_refused(app) == REFUSED
            app.picture("pass-cancelled")
            assert snapshot(host) == before

            seat.keys("alt+t")
            seat.answer("wrong")
            assert why_refused(app) == REFUSED
            assert snapshot(host) == before

            seat.keys("alt+t")
            seat.answer(PASSWORD)
            app.reach("connected")
            assert probes.source_seen(host, plan.ALPHA.v4) == plan.GATEWAY4
            press(app, "alt+d", "disconnected")
            assert seat.asked() == 3
            print(f"cancelled, wrong, right: asked {seat.asked()} times")

            desk.rules("polkit.addRule(function(action) { return polkit.Result.NO; });")
            connect(app)
            assert "ask your administrator" in failure(app)
            assert snapshot(host) == before
            assert seat.asked() == 3
            seat.keys("ctrl+q")
            app.process.wait(20)


def test_cancelling_in_the_window_takes_the_question_back(vpn: Vpn, desk: Desk) -> None:
    """Somebody changes their mind while the desktop asks."""
    host = vpn.world.client
    with Seat(desk, "ada") as seat, as_before(host):
        seat.start_agent()
        ada = Person(seat)
        ada.add_profile(vpn.gateway.token("undecided"))
        with running(seat, ada) as app:
            window = seat.window("qvpn")
            connect(app)
            seat.window(DIALOG)
            seat.tool("xdotool", "windowactivate", "--sync", window)
            seat.keys("alt+c")
            app.reach("disconnected")
            until(seat.taken_back, "the agent is told")  # LXQt's shows its dialog all the same
            assert probes.source_seen(host, plan.ALPHA.v4) == plan.ROUTER4
            seat.tool("xdotool", "windowactivate", "--sync", window)
            seat.keys("ctrl+q")
            app.process.wait(20)


def why_refused(app: App) -> str:
    """What the app says after the agent has told of a failure, which has to be confirmed."""
    app.desktop.focused("Authorization Failed")
    app.desktop.keys("Return")
    return failure(app)


def failure(app: App) -> str:
    """Why the session failed, once it has."""
    status = until(lambda: (it := app.client.status())["state"] == "failed" and it, "a failure")
    assert isinstance(status, dict)
    assert status["reason"] == "not-authorized"
    return str(status["error"])


def seen_in_panel(app: App, state: str) -> None:
    """What the icon tells a panel that asks, which is one by StatusNotifier."""
    items = notifier_items(app.desktop)
    if not items:
        return
    name, _, path = items[0].split('"')[1].partition("/")
    ask = [
        "dbus-send", "--session", "--print-reply", f"--dest={name}", f"/{path}",
        "org.freedesktop.DBus.Properties.Get",
        "string:org.kde.StatusNotifierItem", "string:ToolTip",
    ]  # fmt: skip
    until(lambda: f"qvpn: {state}" in app.desktop.tool(*ask), f"{state} in the panel")


def use_only(app: App, network: str, picture: str) -> None:
    """Have only this network use the tunnel, by the dialog, from the window."""
    seat = app.desktop

    def applied() -> bool:
        seat.keys("alt+w")
        seat.window(ROUTES)
        seat.keys("alt+o")
        time.sleep(0.5)  # a button that is pressed by its letter is seen to go down first
        seat.keys("Tab")
        seat.tool("xdotool", "type", "--delay", "5", network)
        seat.keys("Return")
        app.picture(picture)
        seat.keys("alt+k")
        with suppress(AssertionError):
            until(lambda: not seat.windows(ROUTES), "the list is taken", 5)
            return True
        seat.keys("Escape")
        until(lambda: not seat.windows(ROUTES), "the dialog is closed")
        return False

    until(applied, "a list that is applied", 40)
