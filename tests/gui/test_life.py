"""The app's life on a desktop: panels that come and go, the end of a session and the next one."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.gui.desktop import Desktop, Panel, unavailable
from tests.gui.test_desktop import App, launch, notifier_items, running
from tests.integration.conftest import namespaces_work  # noqa: F401
from tests.world.vpn import BIN, Vpn, leaves_nothing, until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def vpn(
    namespaces_work: None,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Vpn]:
    """A gateway that runs."""
    if reason := unavailable():
        pytest.skip(reason)
    with Vpn(tmp_path_factory.mktemp("life")) as vpn:
        yield vpn


@pytest.mark.parametrize("panel", ["lxqt-panel", "trayer"])
def test_the_icon_is_in_whatever_panel_there_is(vpn: Vpn, panel: Panel) -> None:
    """One that starts after the app, ends, and starts again, as panels do that crash."""
    client = vpn.clients[0]
    with Desktop() as desktop, running(desktop, client) as app:
        icons = notifier_items if panel == "lxqt-panel" else Desktop.docked
        desktop.window("qvpn")
        for _ in range(2):
            process = desktop.start_panel(panel)
            assert process is not None
            until(lambda: icons(desktop), "an icon in the panel")
            process.kill()
            process.wait(20)
            until(lambda: not icons(desktop), "no panel, no icon")
            assert desktop.windows("qvpn"), "the window stays"
        desktop.keys("ctrl+q")
        app.process.wait(20)


def test_a_tunnel_that_was_up_at_logout_is_up_after_login(vpn: Vpn) -> None:
    """Logging out is a SIGTERM; the next session starts the app in the background."""
    client = vpn.clients[0]
    with leaves_nothing(client.host, within=5):
        with Desktop() as desktop:
            with running(desktop, client, "--minimized", "--connect", "home") as app:
                app.reach("connected")
                log_out(app.process)
        with Desktop() as desktop:
            with running(desktop, client, "--minimized") as app:
                app.reach("connected")
                client.down()
                app.reach("disconnected")
                log_out(app.process)
            with running(desktop, client, "--minimized") as app:
                stays_disconnected(app)
                log_out(app.process)


def test_what_the_user_starts_does_not_connect_by_itself(vpn: Vpn) -> None:
    client = vpn.clients[0]
    with Desktop() as desktop, leaves_nothing(client.host, within=5):
        with running(desktop, client, "--connect", "home") as app:
            app.reach("connected")
            log_out(app.process)
        with running(desktop, client) as app:
            desktop.window("qvpn")
            stays_disconnected(app)
            desktop.keys("ctrl+q")
            app.process.wait(20)


def test_a_display_that_vanishes_leaves_the_network_as_it_was(vpn: Vpn) -> None:
    """As at a logout that does not wait, and when the X server crashes."""
    client = vpn.clients[0]
    with Desktop() as desktop, leaves_nothing(client.host, within=15):
        process = launch(desktop, client, str(BIN / "qvpn-gui"), "--connect", "home")
        try:
            client.wait_for("connected", 40)
            desktop.end_display()
            process.wait(30)
        finally:
            process.kill()
            process.wait(20)


def stays_disconnected(app: App) -> None:
    """Also when everything is there that a connection could have waited for."""
    until(lambda: "no panel" in app.log or app.desktop.windows("qvpn"), "the app is there")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert app.state() == "disconnected"
        time.sleep(0.1)


def log_out(process: subprocess.Popen[bytes]) -> None:
    """What a session manager does to everything at the end of a session."""
    process.send_signal(signal.SIGTERM)
    process.wait(20)
