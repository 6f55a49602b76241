"""A small desktop for one test: an X server, a session bus, a window manager, a panel, notices.

Everything is started by this process, ends with the block, and is reached by its own display number
and bus address: nothing of the machine's own desktop is touched.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from tests.world.vpn import PATIENCE, until

#: What panels take icons: by StatusNotifier, by XEmbed, or there is none.
Panel = Literal["lxqt-panel", "trayer", "none"]

PROGRAMS: Final = (
    "Xvfb", "openbox", "dbus-daemon", "dbus-send", "dunst", "dunstctl", "trayer", "lxqt-panel",
    "xdotool", "xwininfo", "import",
)  # fmt: skip
_SIZE: Final = "1280x960x24"
_LXQT: Final = """\
[General]
panels=panel1
[panel1]
alignment=-1
animation-duration=0
iconSize=22
lineCount=1
panelSize=34
plugins=statusnotifier
position=Bottom
width=100
width-percent=true
[statusnotifier]
alignment=Right
type=statusnotifier
"""


def unavailable() -> str | None:
    """Why there can be no desktop here, if so."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"a desktop for tests needs {', '.join(missing)}" if missing else None


class Desktop:
    """`environment` is what a program needs to appear on it."""

    def __init__(self, panel: Panel = "none") -> None:
        self._panel = panel
        self._stack = contextlib.ExitStack()
        self.environment: dict[str, str] = {}
        self.home = Path()
        self._display: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvpn-desk-")))
            self._stack = stack
            self._move_in()
            self._start_display()
            self._start_bus()
            # A window that asks to be shown while openbox starts is never shown.
            started = self.home / "started"
            self._start("openbox", "--startup", f"touch {started}")
            until(started.exists, "a window manager")
            self._start("dunst")
            self.start_panel(self._panel)
            self._stack = stack.pop_all()
        return self

    def end_display(self) -> None:
        """End the X server, and with it what does not know what to do then."""
        assert self._display is not None
        _end(self._display)

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs a program on this desktop, in `environment`."""
        return list(words)

    def _move_in(self) -> None:
        """What has to be done before anything is started; `home` is there."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start_panel(self, panel: Panel) -> subprocess.Popen[bytes] | None:
        """A panel, which may start later than the programs that want to be in it."""
        if panel == "none":
            return None
        if panel == "trayer":
            tray = self._start("trayer", "--edge", "bottom", "--height", "24")
            until(lambda: self.windows("panel"), "a tray")
            return tray
        configuration = self.home / "lxqt"
        configuration.mkdir(exist_ok=True)
        (configuration / "panel.conf").write_text(_LXQT)
        return self._start("lxqt-panel")

    def tool(self, *words: str, check: bool = True) -> str:
        """Run a program on this desktop and return what it prints."""
        done = subprocess.run(
            self.command(words), env=self.environment, capture_output=True, text=True,
            timeout=20, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def window(self, title: str) -> str:
        """The window of that title, once it is there."""
        return until(lambda: self.windows(title), f"a window {title!r}")[-1]

    def focused(self, title: str) -> None:
        """Wait until the window of that title takes keys: the window manager gives it the focus."""
        ask = ("xdotool", "getactivewindow", "getwindowname")
        until(lambda: self.tool(*ask, check=False) == f"{title}\n", f"{title!r} has the focus")

    def windows(self, title: str) -> list[str]:
        """The windows of that title that are seen now."""
        found = self.tool("xdotool", "search", "--onlyvisible", "--name", f"^{title}$", check=False)
        return found.split()

    def docked(self) -> list[str]:
        """The windows of the app that trayer holds, as X knows them."""
        # It fails when a window goes while it looks; whoever waits looks again.
        tree = self.tool("xwininfo", "-root", "-tree", check=False).splitlines()
        return [line.split()[0] for line in tree if '("qvpn-gui"' in line and "22x22" in line]

    def keys(self, *keys: str) -> None:
        """Press keys, for whoever has the focus."""
        self.tool("xdotool", "key", "--clearmodifiers", *keys)

    def picture(self, file: Path) -> None:
        """The whole screen."""
        file.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            self.command(["import", "-window", "root", "png:-"]),
            env=self.environment, capture_output=True, timeout=20, check=True,
        )  # fmt: skip
        file.write_bytes(done.stdout)

    def _start_display(self) -> None:
        reading, writing = os.pipe()
        try:
            self._display = self._start_program(
                # -noreset: it does not begin anew when the first program that looked is gone.
                # -r: a key that is let go late is still pressed once.
                [
                    *("Xvfb", "-displayfd", str(writing), "-screen", "0", _SIZE),
                    *("-nolisten", "tcp", "-noreset", "-r"),
                ],
                pass_fds=[writing],
            )
            os.close(writing)
            writing = -1
            number = first_line(reading)
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "DISPLAY": f":{number}",
            "QT_QPA_PLATFORM": "xcb",
            "XDG_CONFIG_HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home),
            "XDG_CURRENT_DESKTOP": "openbox",
        }

    def _start_bus(self) -> None:
        process = self._start(
            "dbus-daemon",
            "--session",
            "--nofork",
            "--print-address",
            f"--address=unix:path={self.home}/bus",
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        self.environment["DBUS_SESSION_BUS_ADDRESS"] = first_line(process.stdout.fileno())

    def _start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return self._start_program(words, env=self.environment, **options)

    def _start_program(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        process = subprocess.Popen(
            self.command(words), **{"stdin": null, "stdout": null, "stderr": null, **options}
        )
        self._stack.callback(_end, process)
        return process


def first_line(descriptor: int) -> str:
    """The first line that a program writes, within a time."""
    written = b""
    end = time.monotonic() + PATIENCE
    while b"\n" not in written:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"a program of the desktop does not start: {written!r}"
        some = os.read(descriptor, 4096)
        assert some, "a program of the desktop ended"
        written += some
    return written.decode().splitlines()[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    if process.stdout is not None:
        process.stdout.close()
