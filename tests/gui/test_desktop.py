"""A full pass of the real app: on a desktop, in a client's namespace, with a real gateway.

Only keys are pressed, and a click on the tray where its host is XEmbed. What was done is read from
the control socket, from the kernel and from the bus, never from the app's own objects. Pictures go
to `QVPN_SCREENSHOTS`, or nowhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.gui.desktop import Desktop, Panel, unavailable
from tests.gui.seat import Seat
from tests.gui.watched_app import judge
from tests.integration.conftest import namespaces_work  # noqa: F401
from tests.world import plan, probes
from tests.world.vpn import BIN, Vpn, VpnClient, leaves_nothing, no_defects, until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

REPOSITORY = Path(__file__).parents[2]
#: What the issue asks for; measured on a machine that does other things too, so judged generously.
START_SECONDS = 1.5
IDLE_SHARE = 0.005
MEMORY = 150 << 20
BUSY = 4  # how much slower than alone this machine may be


@pytest.fixture(scope="module")
def vpn(
    namespaces_work: None,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Vpn]:
    """A gateway that runs, and a client whose first profile is still to come."""
    if reason := unavailable():
        pytest.skip(reason)
    with Vpn(tmp_path_factory.mktemp("desktop")) as vpn:
        yield vpn


class App:
    """The running app, seen from outside."""

    def __init__(self, desktop: Desktop, client: VpnClient, process: subprocess.Popen[bytes]):
        self.desktop = desktop
        self.client = client
        self.process = process

    def state(self) -> str:
        """The state of the session, from the control socket."""
        return str(self.client.peek().get("state", "disconnected"))

    def reach(self, state: str, timeout: float = 40.0) -> None:
        """Wait for a state."""
        until(lambda: self.state() == state, f"{state}, not {self.state()}", timeout)

    def picture(self, name: str) -> None:
        """Keep the window as it is now, if somebody wants pictures."""
        directory = os.environ.get("QVPN_SCREENSHOTS")
        if directory:
            time.sleep(0.5)  # for the eye only: no test depends on it
            self.desktop.picture(Path(directory) / f"{name}.png")

    @property
    def log(self) -> str:
        """What the app logged."""
        return (self.client.state / "app.log").read_text()

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def processor(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def _pid(self) -> int:
        return self.process.pid  # `ip netns exec` becomes what it starts


@contextmanager
def running(
    desktop: Desktop, client: VpnClient, *options: str, watch: Path | None = None
) -> Iterator[App]:
    """The app in the client's namespace, perhaps with a watch on its loop.

    It has to end within the block, without a defect.
    """
    watched = [sys.executable, "-m", "tests.gui.watched_app", str(watch)]
    program = watched if watch else [str(BIN / "qvpn-gui")]
    app = App(desktop, client, launch(desktop, client, *program, *options))
    process = app.process
    try:
        yield app
        assert process.poll() is not None, "the app was told to end"
        assert process.returncode == 0, app.log
        no_defects(app.log)
        if watch:
            judge(watch, BUSY)
    except BaseException:
        app.picture("failure")
        with suppress(OSError):
            print(f"{app.client.peek()}\n{app.log}")
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def launch(desktop: Desktop, client: VpnClient, *words: str) -> subprocess.Popen[bytes]:
    """Start a program where the client is, on the desktop."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "cwd": REPOSITORY}
    quiet["stderr"] = subprocess.DEVNULL
    if isinstance(desktop, Seat):
        return subprocess.Popen(desktop.command(words), process_group=0, **quiet)
    return client.host.popen(words, env=client.environment | desktop.environment, **quiet)


def has_owner(desktop: Desktop, name: str) -> bool:
    """Whether a name on the session bus is taken."""
    printed = desktop.tool(
        "dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus",
        "/org/freedesktop/DBus", "org.freedesktop.DBus.NameHasOwner", f"string:{name}",
    )  # fmt: skip
    return "true" in printed


def notifier_items(desktop: Desktop) -> list[str]:
    """The icons that a StatusNotifier host knows."""
    printed = desktop.tool(
        "dbus-send", "--session", "--print-reply", "--dest=org.kde.StatusNotifierWatcher",
        "/StatusNotifierWatcher", "org.freedesktop.DBus.Properties.Get",
        "string:org.kde.StatusNotifierWatcher", "string:RegisteredStatusNotifierItems",
        check=False,
    )  # fmt: skip
    return [line.strip() for line in printed.splitlines() if "StatusNotifierItem" in line]


def shown(desktop: Desktop) -> int:
    """How many notices are seen now."""
    return int(desktop.tool("dunstctl", "count", "displayed"))


def close(desktop: Desktop) -> None:
    """Close the window, as soon as it has the focus."""

    def closed() -> bool:
        if desktop.windows("qvpn"):
            desktop.keys("alt+F4")
            with suppress(AssertionError):  # not again at once: it could meet the next window
                until(lambda: not desktop.windows("qvpn"), "the window is closed", 5)
        return not desktop.windows("qvpn")

    until(closed, "the window is closed")


def load(app: App, seconds: float = 4.0) -> float:
    """The share of a processor that the app takes now."""
    before, begin = app.processor(), time.monotonic()
    time.sleep(seconds)  # what is measured over
    share = (app.processor() - before) / (time.monotonic() - begin)
    print(f"processor time, window closed, connected: {share:.2%}")
    return share


def press(app: App, key: str, state: str) -> None:
    """Press a key for the window until the session is in a state: it may still be on its way.

    Not again before the last one had its time: one that comes late would meet what comes next.
    """

    def reached() -> bool:
        if app.state() != state:
            app.desktop.keys(key)
            with suppress(AssertionError):
                until(lambda: app.state() == state, f"{state} after {key}", 5)
        return app.state() == state

    until(reached, f"{state} after {key}")


def connect(app: App) -> None:
    """Press the button, which may only be about to appear; it is seen to be tried at once.

    A second time it would end the attempt, so the first has long to be seen.
    """

    def trying() -> bool:
        app.desktop.keys("alt+c")
        with suppress(AssertionError):
            until(lambda: app.state() not in ("disconnected", "failed"), "it is tried", 15)
            return True
        return False

    until(trying, "it is tried", 40)


def test_the_first_day_with_the_app(vpn: Vpn, tmp_path: Path) -> None:
    """Invite, connect, traffic, a gateway that dies and comes back, disconnect, quit."""
    client = vpn.clients[0]
    client.command("profile", "remove", "home")
    with Desktop("lxqt-panel") as desktop, leaves_nothing(client.host, within=5):
        until(lambda: has_owner(desktop, "org.kde.StatusNotifierWatcher"), "a panel")
        with running(desktop, client, watch=tmp_path / "watch") as app:
            desktop.window("qvpn")
            until(lambda: notifier_items(desktop), "an icon in the panel")
            app.picture("first-run")

            link = vpn.gateway.command("invite", "laptop").stdout.strip()
            desktop.tool("xdotool", "type", "--delay", "2", link)
            app.picture("invite")
            desktop.keys("Return")
            until(lambda: any((client.directory / "config/profiles").glob("*.toml")), "a profile")
            app.picture("disconnected")

            connect(app)
            app.reach("connected")
            assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.GATEWAY4
            assert client.status()["state"] == "connected", "the command line sees it too"
            got = probes.download(client.host, plan.ALPHA.v4, 32 << 20)
            print(f"download through the app: {got.mbit_per_second:.0f} Mbit/s")
            app.picture("connected")

            vpn.gateway.stop(signal.SIGTERM)
            app.reach("reconnecting")
            app.picture("reconnecting")
            vpn.gateway.start()
            app.reach("connected")
            assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.GATEWAY4

            desktop.keys("alt+d")
            app.reach("disconnected")
            assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.ROUTER4
            desktop.keys("ctrl+q")
            app.process.wait(20)


def test_in_the_background_it_costs_little_and_tells_what_matters(vpn: Vpn) -> None:
    """An XEmbed tray that starts late, a notice of a loss, a click, a second start, a logout."""
    client = vpn.clients[1]
    with Desktop() as desktop, leaves_nothing(client.host, within=5):
        with running(desktop, client, "--minimized", "--connect", "home") as app:
            app.reach("connected")
            assert desktop.windows("qvpn") == []
            desktop.start_panel("trayer")
            until(desktop.docked, "an icon in the late tray")
            memory = app.memory()
            print(f"resident memory, connected: {memory >> 20} MiB")
            assert memory < MEMORY

            until(lambda: load(app) < IDLE_SHARE * BUSY, "an app at rest", 30)

            assert shown(desktop) == 0, "it was asked for"
            vpn.gateway.stop(signal.SIGTERM)
            until(lambda: shown(desktop) > 0, "a notice")
            app.picture("notice")
            vpn.gateway.start()
            app.reach("connected")

            [icon, *_] = until(desktop.docked, "the icon")
            desktop.tool("xdotool", "mousemove", "--window", icon, "11", "11")
            desktop.tool("xdotool", "click", "1")
            desktop.window("qvpn")
            app.picture("trayer")
            close(desktop)
            assert app.state() == "connected"
            start(desktop, client)
            desktop.window("qvpn")
            app.process.send_signal(signal.SIGTERM)  # as at the end of the desktop's session
            app.process.wait(20)


def start(desktop: Desktop, client: VpnClient, *options: str) -> None:
    """A further start, which hands over and ends."""
    assert launch(desktop, client, str(BIN / "qvpn-gui"), *options).wait(20) == 0


def test_without_a_panel_the_window_does_everything(vpn: Vpn, tmp_path: Path) -> None:
    """Also for a session that the command line started; an idle app ends with its window."""
    client = vpn.clients[1]
    client.up()
    with Desktop() as desktop:
        with running(desktop, client, watch=tmp_path / "watch") as app:
            desktop.window("qvpn")
            press(app, "alt+d", "disconnected")
            until(lambda: client.agent() is None, "no agent")
            start(desktop, client, "--connect", "home")
            app.reach("connected")
            close(desktop)
            assert app.state() == "connected", "what is held stays"
            start(desktop, client)
            desktop.window("qvpn")
            client.down()
            app.reach("disconnected")
            close(desktop)
            app.process.wait(20)


@pytest.mark.parametrize("panel", ["lxqt-panel", "trayer"])
def test_the_icon_is_there_soon(vpn: Vpn, tmp_path: Path, panel: Panel) -> None:
    client = vpn.clients[1]
    with Desktop(panel) as desktop:
        if panel == "lxqt-panel":
            until(lambda: has_owner(desktop, "org.kde.StatusNotifierWatcher"), "a panel")
        icons = notifier_items if panel == "lxqt-panel" else Desktop.docked
        begin = time.monotonic()
        with running(desktop, client, "--minimized", watch=tmp_path / "watch") as app:
            until(lambda: icons(desktop), "an icon in the panel")
            seconds = time.monotonic() - begin
            used = app.processor()
            print(f"{panel}: icon after {seconds:.2f} s, {used:.2f} s of processor time")
            assert used < START_SECONDS
            assert seconds < START_SECONDS * BUSY
            app.process.send_signal(signal.SIGTERM)
            app.process.wait(20)


def test_an_app_that_is_killed_leaves_the_network_as_it_was(vpn: Vpn, tmp_path: Path) -> None:
    client = vpn.clients[1]
    with Desktop() as desktop, leaves_nothing(client.host, within=10):
        process = client.host.popen(
            [str(BIN / "qvpn-gui"), "--minimized", "--connect", "home"],
            env=client.environment | desktop.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        client.wait_for("connected", 40)
        process.kill()
        process.wait()
