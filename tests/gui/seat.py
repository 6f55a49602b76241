"""An ordinary user who sits at a desk: a desktop of hers, and a polkit agent that asks her.

The dialog is a real one and so is the password: PAM checks it against the desk's own /etc/shadow.
How often she was asked is read from the system bus.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.gui.desktop import Desktop, Panel, first_line
from tests.world.desk import USERS, Desk
from tests.world.vpn import BIN, PATIENCE, VpnClient, until

AGENT: Final = "lxqt-policykit-agent"
PASSWORD: Final = "correct horse"
#: The title of the agent's dialog.
DIALOG: Final = "Authentication Required"

_COPY: Final = """
import sys
from PySide6.QtGui import QGuiApplication
app = QGuiApplication([])
app.clipboard().setText(sys.argv[1])
print("copied", flush=True)
app.exec()
"""


def unavailable() -> str | None:
    """Why nobody can be asked for a password here, if so."""
    programs = (AGENT, "openssl", "dbus-monitor")
    missing = [program for program in programs if shutil.which(program) is None]
    if "cgroup2" not in Path("/proc/filesystems").read_text():
        missing.append("control groups, version 2")
    return f"a password dialog needs {', '.join(missing)}" if missing else None


class Seat(Desktop):
    """The desktop of `user` on a desk, on which she is an administrator. See the module."""

    def __init__(self, desk: Desk, user: str, panel: Panel = "none") -> None:
        super().__init__(panel)
        self.desk = desk
        self.user = user
        self._heard = Path()

    def command(self, words: Sequence[str]) -> list[str]:
        given = [f"{name}={value}" for name, value in self.environment.items()]
        return self.desk.as_user(self.user, ["env", *given, *words])

    def _move_in(self) -> None:
        os.chown(self.home, USERS[self.user], USERS[self.user])
        # Its displays are numbered by themselves, and must not be in the way of the machine's.
        self.desk.run(
            "sh", "-c",
            "mkdir -p -m 1777 /tmp/.X11-unix; mount -t tmpfs -o mode=1777 desk /tmp/.X11-unix",
        )  # fmt: skip
        self.desk.seat(self.user, PASSWORD)
        self._heard = self.home / "asked"
        with open(self._heard, "wb") as file:
            self._stack.callback(
                self.desk.stop,
                self.desk.popen(
                    "dbus-monitor", "--system",
                    "type='method_call',member='BeginAuthentication'",
                    "type='method_call',member='CancelAuthentication'",
                    "type='method_call',member='RegisterAuthenticationAgent'",
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL,
                ),
            )  # fmt: skip
        until(lambda: self._heard.stat().st_size, "somebody who counts")

    def answer(self, text: str) -> None:
        """Type a password into the dialog that asks for it."""
        self.focused(DIALOG)
        self.tool("xdotool", "type", "--delay", "5", text)
        self.keys("Return")

    def copy(self, text: str) -> None:
        """Have a text in the clipboard, of a program that stays."""
        program = self.start_program(sys.executable, "-c", _COPY, text, stdout=subprocess.PIPE)
        assert program.stdout is not None
        first_line(program.stdout.fileno())

    def start_program(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program of the user's, which ends with the desktop."""
        return self._start(*words, **options)

    def start_agent(self) -> subprocess.Popen[bytes]:
        """The agent that asks; polkit knows it when this returns."""
        agent = self.start_program(AGENT)
        until(lambda: self._told("RegisterAuthenticationAgent"), "an agent")
        return agent

    def asked(self) -> int:
        """How often polkit had somebody asked for a password so far."""
        return self._told("BeginAuthentication")

    def taken_back(self) -> int:
        """How often polkit told the agent that its question is of no use any more."""
        return self._told("CancelAuthentication")

    def _told(self, member: str) -> int:
        return self._heard.read_text().count(f"member={member}\n")


class Person(VpnClient):
    """The user of a seat: her own files, in the places where everybody has them."""

    def __init__(self, seat: Seat) -> None:
        self.host = seat.desk.network
        self.directory = seat.home
        self.config = self.runtime = seat.home / "qvpn"
        self.state = seat.home / ".local/state/qvpn"
        self.environment = seat.environment
        self._seat = seat

    def command(
        self, *words: str, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run `qvpn` as the user."""
        argv = self._seat.command([str(BIN / "qvpn"), *words])
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, cwd="/")
        assert not check or done.returncode == 0, done.stderr
        return done
