"""A desktop's machine: the real polkitd and pkexec, the helper installed, and ordinary users.

Built on :class:`tests.world.machine.Machine`, so nothing of it is the host's. Users run the
checkout's own `qvpn`; what they may do is for polkit's rules to say, which a test writes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from tests.world.machine import Machine
from tests.world.namespaces import Namespace

CHECKOUT: Final = Path(__file__).resolve().parents[2]
POLKITD: Final = "/usr/lib/polkit-1/polkitd"
SESSION: Final = "io.github.qvpn.session"
UNLOCK: Final = "io.github.qvpn.unlock"
#: Numbers that no distribution gives to people or services.
USERS: Final = {"ada": 64001, "bob": 64002}

#: The rest of the mounts, and the users. $@: directories that everybody must be able to read.
_SETUP: Final = """
set -eu
over() {  # what is written to $1 stays here
  mkdir -p "/run/over/$2/upper" "/run/over/$2/work"
  mount -t overlay desk -o "lowerdir=$1,upperdir=/run/over/$2/upper,workdir=/run/over/$2/work" "$1"
}
over /usr/local/lib lib
over /usr/share/polkit-1/actions actions
rm -f /etc/polkit-1/rules.d/*
echo 'ada:x:64001:64001:Ada:/run/home/ada:/bin/sh' >> /etc/passwd
echo 'bob:x:64002:64002:Bob:/run/home/bob:/bin/sh' >> /etc/passwd
printf 'ada:x:64001:\\nbob:x:64002:\\n' >> /etc/group
for user in ada bob; do mkdir -p /run/home/$user && chown $user:$user /run/home/$user; done
number=0
for path in "$@"; do  # below a directory that is closed to others, only this is seen
  closed= at=$path
  while ! setpriv --reuid=64001 --regid=64001 --clear-groups test -x "$at"; do
    closed=$at at=$(dirname "$at")
  done
  [ -n "$closed" ] || continue
  number=$((number + 1))
  mkdir -p /run/hold/$number
  mount --bind "$path" /run/hold/$number
  mount -t tmpfs -o mode=755 desk "$closed"
  mkdir -p "$path"
  mount --bind /run/hold/$number "$path"
done
"""


def unavailable() -> str | None:
    """Why there can be no desk here, in one line, or None."""
    missing = [name for name in ("pkexec", "dbus-daemon", "setpriv") if shutil.which(name) is None]
    if not os.path.exists(POLKITD):
        missing.append("polkitd")
    if missing:
        return f"missing {', '.join(missing)}: install polkitd, pkexec, dbus and util-linux"
    return None


class Desk(Machine):
    """See the module."""

    def __init__(self, network: Namespace, directory: Path) -> None:
        super().__init__(network, directory)
        self.polkitd: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            closed = dict.fromkeys(map(os.path.realpath, (CHECKOUT, sys.prefix, sys.base_prefix)))
            self.run("sh", "-c", _SETUP, "sh", *closed)
            self.run(sys.executable, "-m", "qvpn_core.helper.install")
            self.start_bus()
            self.allow()
            self.start_polkitd()
        except BaseException:
            self.close()
            raise
        return self

    def start_polkitd(self) -> None:
        """polkitd, with the rules that are there now."""
        self.polkitd = self._start("org.freedesktop.PolicyKit1", POLKITD, "--no-debug")

    def allow(self, **actions: str) -> None:
        """From now on polkit answers so: ``allow(ada=SESSION)``; everything else is by default."""
        rules = "".join(
            f"if (subject.user == '{user}' && action.id == '{action}') return polkit.Result.YES;\n"
            for user, several in actions.items()
            for action in several.split()
        )
        self.rules(f"polkit.addRule(function(action, subject) {{\n{rules}}});\n")

    def rules(self, text: str) -> None:
        """Write polkit's rules, and have it read them."""
        self.run("sh", "-c", "cat > /etc/polkit-1/rules.d/10-test.rules", input=text)
        if self.polkitd is not None:
            self.stop(self.polkitd, signal.SIGKILL)
            self.start_polkitd()

    def as_user(self, user: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside as an ordinary user, with an own home."""
        number = USERS[user]
        home = f"/run/home/{user}"
        return self.command(
            [
                "setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups",
                "env", "-i", f"HOME={home}", f"XDG_RUNTIME_DIR={home}", f"USER={user}",
                "PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", *argv,
            ]
        )  # fmt: skip

    def qvpn(
        self, user: str, *words: str, timeout: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `qvpn` as an ordinary user."""
        argv = self.as_user(user, [str(Path(sys.executable).parent / "qvpn"), *words])
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, cwd="/")
