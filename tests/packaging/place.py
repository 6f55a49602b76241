"""A world whose gateway and client are whole systems; an ordinary user, with a desktop on one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.gui import desktop as desktops
from tests.gui.desktop import Desktop
from tests.packaging import system
from tests.packaging.system import System
from tests.world import World, plan
from tests.world import unavailable as no_world
from tests.world.vpn import until

STATE: Final = ("--state", "/var/lib/qvpn-server")
#: What is there besides, so that commands can be typed as a page has them.
SUDO_PACKAGE: Final = "sudo"
SUDO: Final = """
ada ALL=(ALL) NOPASSWD: ALL
Defaults env_keep += "DEBIAN_FRONTEND PIP_NO_INDEX PIP_FIND_LINKS"
"""
RULE: Final = """
polkit.addRule(function(action, subject) {
    if (subject.user == "ada" && action.id.startsWith("io.github.qvpn.")) {
        return polkit.Result.YES;
    }
});
"""


@dataclass(frozen=True)
class Place:
    """A world whose gateway and client are systems of their own, with nothing of ours installed."""

    world: World
    gateway: System
    client: System
    desktop: Desktop
    #: Of the user who types.
    variables: dict[str, str] = field(default_factory=dict)

    def status(self) -> dict[str, Any]:
        """What the session of the ordinary user says about itself."""
        said = self.client.run_as("ada", "qvpn", "status", "--json", check=False).stdout
        found: dict[str, Any] = json.loads(said)
        return found

    def type(self, machine: System, line: str, *, link: str = "") -> str:
        """A command as a page has it, typed by the ordinary user where the files are."""
        line = line.replace("vpn.example.org", plan.GATEWAY4).replace("qvpn://…", link)
        print(f"ada@{machine.name}:~$ {line}")
        variables = {"DEBIAN_FRONTEND": "noninteractive", **self.variables}
        words = machine.user_command("ada", "sh", "-c", f"cd /packages; {line}", **variables)
        done = machine.execute(words, timeout=300)
        print(done.stdout, end="")
        return done.stdout

    def connected(self) -> bool:
        """Whether it has a tunnel."""
        return bool(self.status()["state"] == "connected")

    def datapaths(self) -> list[str]:
        """What moves the packets of each session, as the gateway says it."""
        said = json.loads(self.gateway.run("qvpn-server", "status", *STATE, "--json").stdout)
        return [session["datapath"] for session in said["sessions"]]

    def invite(self, name: str) -> str:
        """A link for one more device."""
        said = self.gateway.run("qvpn-server", "invite", *STATE, name).stdout.split()
        return next(word for word in said if word.startswith("qvpn://"))

    @contextlib.contextmanager
    def app(self, *options: str, program: str = "qvpn-gui") -> Iterator[float]:
        """The app, by its desktop entry's command; the seconds until its icon was there."""
        words = self.client.user_command(
            "ada", program, *options, DISPLAY=self.desktop.environment["DISPLAY"]
        )
        begin = time.monotonic()
        # A file, and no pipe: what the app starts may keep it open.
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
            )
            try:
                until(lambda: self.desktop.docked() or process.poll() is not None, "an icon", 60)
                seconds = time.monotonic() - begin
                said.seek(0)
                assert process.poll() is None, said.read()
                yield seconds
            finally:
                try:
                    self.end_app()
                    process.wait(30)
                finally:
                    process.kill()
                    process.wait(10)

    def app_process(self) -> str:
        """The app's process inside, as it calls itself; empty without."""
        return self.client.sh(
            "for at in /proc/[0-9]*; do case $(tr '\\0' ' ' < $at/cmdline 2>/dev/null) in "
            "/*/bin/python*/bin/qvpn-gui*) echo ${at#/proc/};; esac; done"
        ).strip()

    def end_app(self) -> None:
        """As the end of the desktop's session does it."""
        if process := self.app_process():
            self.client.sh(f"kill {process}")
            until(lambda: not self.app_process(), "the app has ended", 30)


def unavailable(suite: str) -> str | None:
    """Why there can be no such place here, in one line, or None."""
    return no_world() or desktops.unavailable() or system.unavailable(suite)


@contextlib.contextmanager
def place(
    suite: str, directory: Path, *, gateway: str, client: str, packages: Path
) -> Iterator[Place]:
    """The place, of systems of a release; `gateway` and `client` are what is installed on each."""
    with (
        World() as world,
        Desktop("trayer") as desktop,
        System(
            suite,
            world.gateway,
            directory / "g",
            needs=f"{gateway}, {SUDO_PACKAGE}",
            packages=packages,
            name="gateway",
        ) as server,
        System(
            suite,
            world.client,
            directory / "c",
            needs=f"{client}, {SUDO_PACKAGE}",
            packages=packages,
            name="client",
        ) as machine,
    ):
        for each in (server, machine):
            each.add_user("ada")
            each.sh(f"mkdir -p /etc/sudoers.d && cat > /etc/sudoers.d/test <<'END'\n{SUDO}END")
            each.sh("echo 'APT::Get::Assume-Yes \"true\";' > /etc/apt/apt.conf.d/90test")
        machine.sh(f"cat > /etc/polkit-1/rules.d/10-test.rules <<'END'\n{RULE}END")
        machine.reach_display(int(desktop.environment["DISPLAY"].removeprefix(":")))
        yield Place(world, server, machine, desktop)
