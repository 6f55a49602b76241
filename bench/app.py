"""``python -m bench.app``: what the tray app costs: its start, its rest, its memory, its patience.

The real app on a small desktop (Xvfb with a panel), as the client of a real gateway, in network
namespaces. It prints a table and writes ``bench/results/app.json`` and ``app.md``. It needs root,
and what ``tests/gui/desktop.py`` lists. Times are medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.__main__ import cpu_model, say
from bench.results import markdown, parse_memory, parse_process_cpu
from tests.gui.desktop import Desktop, Panel, unavailable
from tests.world import plan, probes
from tests.world.vpn import BIN, Vpn, VpnClient, until

RESULTS: Final = Path(__file__).parent / "results"
REPOSITORY: Final = Path(__file__).parents[1]
_CACHES: Final = Path("/proc/sys/vm/drop_caches")
_DOWNLOAD: Final = 32 << 20
#: Name: label, unit, what the issue asks for (at most), digits.
METRICS: Final[dict[str, tuple[str, str, float | None, int]]] = {
    "start_notifier": ("start to the icon, StatusNotifier", "s", 1.5, 2),
    "start_xembed": ("start to the icon, XEmbed", "s", 1.5, 2),
    "start_cold": ("the same, StatusNotifier, nothing in the file cache", "s", 1.5, 2),
    "start_cpu": ("processor time of a start", "s", None, 2),
    "idle": ("processor, window closed, no tunnel", "%", 0.5, 2),
    "idle_connected": ("processor, window closed, tunnel at rest", "%", 0.5, 2),
    "idle_window": ("processor, window open, tunnel at rest", "%", None, 2),
    "rss": ("RSS, window closed, no tunnel", "MB", 150, 1),
    "rss_connected": ("RSS, tunnel up", "MB", 150, 1),
    "rss_all": ("RSS, tunnel up, every window opened once, after a download", "MB", 150, 1),
    "pss_connected": ("PSS, tunnel up", "MB", None, 1),
    "download": ("download through the app", "Mbit/s", None, 0),
    "turn_p50": ("turn of the event loop during it, median delay", "ms", None, 0),
    "turn_p99": ("turn of the event loop during it, 99 of 100", "ms", None, 0),
    "turn_max": ("turn of the event loop during it, longest", "ms", 50, 0),
    "menu": ("a key to an open menu during it, with the watching", "ms", None, 0),
    "dialog": ("a key to an open window during it, with the watching", "ms", None, 0),
}

#: The keys of the window's menu, and the titles of what they open.
WINDOWS: Final = {
    "p": "Profiles",
    "t": "What uses the tunnel: home",
    "c": "Connect as: home",
    "s": "Settings",
    "d": "Diagnostics",
}

Recorded = defaultdict[str, list[float]]


class App:
    """The running app, seen from outside."""

    def __init__(
        self, desktop: Desktop, client: VpnClient, *options: str, watch: Path | None = None
    ) -> None:
        watched = [sys.executable, "-m", "tests.gui.watched_app", str(watch)]
        self.desktop = desktop
        self.client = client
        self.begin = time.monotonic()
        self.process = client.host.popen(
            [*(watched if watch else [str(BIN / "qvpn-gui")]), *options],
            env=client.environment | desktop.environment,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def processor(self) -> float:
        """Seconds of processor time so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return parse_process_cpu(stat) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> tuple[float, float]:
        """(RSS, PSS) in MB."""
        return parse_memory(Path(f"/proc/{self.process.pid}/smaps_rollup").read_text())

    def share(self, seconds: float) -> float:
        """Per cent of a processor over some seconds."""
        before, begin = self.processor(), time.monotonic()
        time.sleep(seconds)  # what is measured over
        return 100 * (self.processor() - before) / (time.monotonic() - begin)

    def reach(self, state: str) -> None:
        """Wait for a state of the session."""
        until(lambda: self.client.peek().get("state") == state, state, 40)

    def end(self) -> None:
        """As at the end of the desktop's session."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


@contextmanager
def running(
    desktop: Desktop, client: VpnClient, *options: str, watch: Path | None = None
) -> Iterator[App]:
    """The app, for a block."""
    app = App(desktop, client, *options, watch=watch)
    try:
        yield app
    finally:
        app.end()


def icons(desktop: Desktop, panel: Panel) -> bool:
    """Whether the app's icon is in the panel."""
    if panel == "trayer":
        return bool(desktop.docked())
    printed = desktop.tool(
        "dbus-send", "--session", "--print-reply", "--dest=org.kde.StatusNotifierWatcher",
        "/StatusNotifierWatcher", "org.freedesktop.DBus.Properties.Get",
        "string:org.kde.StatusNotifierWatcher", "string:RegisteredStatusNotifierItems",
        check=False,
    )  # fmt: skip
    return "StatusNotifierItem" in printed


def soon(condition: Callable[[], object], timeout: float = 20.0) -> float:
    """When something happens, polled every few milliseconds; monotonic seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return time.monotonic()
        time.sleep(0.005)
    raise TimeoutError("it did not happen")


def start(client: VpnClient, panel: Panel, *, cold: bool = False) -> tuple[float, float]:
    """Seconds from the start to the icon, and processor seconds until then."""
    with Desktop(panel) as desktop:
        if panel == "lxqt-panel":
            # The watcher answers at all: the panel is there.
            until(lambda: "array" in _watcher(desktop), "a panel")
        else:
            time.sleep(0.5)  # trayer says nothing when it is ready
        if cold:
            os.sync()
            _CACHES.write_text("3")
        with running(desktop, client, "--minimized") as app:
            seconds = soon(lambda: icons(desktop, panel)) - app.begin
            return seconds, app.processor()


def _watcher(desktop: Desktop) -> str:
    return desktop.tool(
        "dbus-send", "--session", "--print-reply", "--dest=org.kde.StatusNotifierWatcher",
        "/StatusNotifierWatcher", "org.freedesktop.DBus.Properties.Get",
        "string:org.kde.StatusNotifierWatcher", "string:RegisteredStatusNotifierItems",
        check=False,
    )  # fmt: skip


def starts(client: VpnClient, rounds: int, recorded: Recorded) -> None:
    """Starts in their kinds."""
    start(client, "lxqt-panel")  # writes byte code and fills caches
    for number in range(rounds):
        say(f"start {number + 1}/{rounds}")
        seconds, used = start(client, "lxqt-panel")
        recorded["start_notifier"].append(seconds)
        recorded["start_cpu"].append(used)
        recorded["start_xembed"].append(start(client, "trayer")[0])
        with suppress(OSError):  # not every machine lets its caches go
            recorded["start_cold"].append(start(client, "lxqt-panel", cold=True)[0])


def rest(client: VpnClient, seconds: float, recorded: Recorded) -> None:
    """An app that nobody looks at, without a tunnel and with one, and its window."""
    with Desktop("lxqt-panel") as desktop:
        until(lambda: "array" in _watcher(desktop), "a panel")
        with running(desktop, client, "--minimized") as app:
            until(lambda: icons(desktop, "lxqt-panel"), "an icon")
            say("at rest, without a tunnel")
            time.sleep(5)  # the end of the start
            recorded["idle"].append(app.share(seconds))
            recorded["rss"].append(app.memory()[0])
            say("at rest, with a tunnel")
            _again(desktop, client, "--connect", "home", "--minimized")
            app.reach("connected")
            time.sleep(5)
            recorded["idle_connected"].append(app.share(seconds))
            rss, pss = app.memory()
            recorded["rss_connected"].append(rss)
            recorded["pss_connected"].append(pss)
            _again(desktop, client)
            desktop.window("qvpn")
            time.sleep(2)
            recorded["idle_window"].append(app.share(seconds))


def _again(desktop: Desktop, client: VpnClient, *options: str) -> None:
    """A further start, which hands over and ends."""
    client.host.run(
        [str(BIN / "qvpn-gui"), *options],
        timeout=20,
        env=client.environment | desktop.environment,
    )


def load(client: VpnClient, seconds: float, directory: Path, recorded: Recorded) -> None:
    """The event loop while downloads run through the app and every window of it is opened."""
    say("under load")
    watch = directory / "watch"
    with Desktop("lxqt-panel") as desktop:
        until(lambda: "array" in _watcher(desktop), "a panel")
        with running(desktop, client, "--connect", "home", watch=watch) as app:
            app.reach("connected")
            desktop.window("qvpn")
            time.sleep(2)  # the start, which is measured by itself
            before = _turns(watch)
            end = time.monotonic() + seconds
            with ThreadPoolExecutor(1) as threads:
                rates = threads.submit(_download, client, end)
                while True:
                    for key, title in WINDOWS.items():
                        _open(desktop, key, title, recorded)
                    if time.monotonic() > end:
                        break
                recorded["download"].append(statistics.median(rates.result(60)))
            time.sleep(1.2)  # the watch writes every second
            turns = [now - then for now, then in zip(_turns(watch), before, strict=True)]
            for name, share in (("turn_p50", 0.5), ("turn_p99", 0.99), ("turn_max", 1.0)):
                recorded[name].append(_quantile(turns, share))
            recorded["rss_all"].append(app.memory()[0])


def _download(client: VpnClient, end: float) -> list[float]:
    """The rates of downloads until a moment, in Mbit/s."""
    rates = []
    while time.monotonic() < end or not rates:
        rates.append(probes.download(client.host, plan.ALPHA.v4, _DOWNLOAD).mbit_per_second)
    return rates


def _open(desktop: Desktop, key: str, title: str, recorded: Recorded) -> None:
    """Open a window by the menu, as a hand on the keyboard would, and close it."""
    begin = time.monotonic()
    desktop.keys("F10")
    recorded["menu"].append(1000 * (soon(lambda: _seen(desktop) > 1) - begin))
    begin = time.monotonic()
    desktop.keys(key)
    recorded["dialog"].append(1000 * (soon(lambda: desktop.windows(title)) - begin))
    # It takes keys as soon as the window manager has given it the focus.
    desktop.focused(title)
    desktop.keys("Escape")
    soon(lambda: not desktop.windows(title))
    desktop.focused("qvpn")


def _seen(desktop: Desktop) -> int:
    """How many windows of the app are seen, menus among them."""
    found = desktop.tool(
        "xdotool", "search", "--onlyvisible", "--classname", "qvpn-gui", check=False
    )
    return len(found.split())


def _turns(watch: Path) -> list[int]:
    """How many turns of the loop came how many milliseconds late."""
    counts: list[int] = json.loads(watch.with_suffix(".turns").read_text())
    return counts


def _quantile(counts: Sequence[int], share: float) -> float:
    """The delay that `share` of the turns do not exceed, in milliseconds."""
    wanted, seen = share * sum(counts), 0
    for delay, count in enumerate(counts):
        seen += count
        if seen >= wanted:
            return float(delay)
    return float(len(counts))


def report(recorded: Recorded, head: str) -> tuple[str, list[dict[str, object]]]:
    """The table, and the entries of the JSON file."""
    rows = [["", "measured", "wanted"]]
    entries: list[dict[str, object]] = []
    for name, (label, unit, most, digits) in METRICS.items():
        if not recorded[name]:
            continue
        value = statistics.median(recorded[name])
        wanted = "" if most is None else f"{'<' if value < most else 'MISSED: <'} {most:g}"
        rows.append([f"{label}, {unit}", f"{value:,.{digits}f}", wanted])
        entries.append({"name": name, "unit": unit, "value": round(value, 4), "wanted": most})
    return f"{head}\n\n{markdown(rows)}\n", entries


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.app", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--seconds", type=int, default=20, metavar="S", help="of rest and of load, default 20"
    )
    chosen = parser.parse_args(argv)
    if chosen.rounds < 1 or chosen.seconds < 5:
        parser.error("--rounds of 1 or more, --seconds of 5 or more")
    if os.geteuid() != 0:
        say("bench.app: needs root to make network namespaces: run it with sudo")
        return 1
    if reason := unavailable():
        say(f"bench.app: {reason}")
        return 1
    busy = os.getloadavg()[0]
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_model()}, {os.cpu_count()} CPUs, "
        f"load {busy:.1f} before the start. Medians of {chosen.rounds} starts; rest and load over "
        f"{chosen.seconds} s."
    )
    recorded: Recorded = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="qvpn-bench-app-") as directory:
        with Vpn(Path(directory)) as vpn:
            client = vpn.clients[0]
            starts(client, chosen.rounds, recorded)
            rest(client, chosen.seconds, recorded)
            load(client, chosen.seconds, Path(directory), recorded)
    text, entries = report(recorded, head)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "app.md").write_text(text)
    (RESULTS / "app.json").write_text(json.dumps(entries, indent=1) + "\n")
    say(f"wrote {RESULTS / 'app.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
