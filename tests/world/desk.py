"""A desktop's machine: the real polkitd and pkexec, the helper installed, and ordinary users.

Built on :class:`tests.world.machine.Machine`, so nothing of it is the host's. Users run the
checkout's own `qvpn`; what they may do is for polkit's rules to say, which a test writes, or for a
password, once they have a seat. What logind would say about who sits there is written by hand:
libsystemd, and with it polkit, reads the name of a control group, and files (sd-login(3)).
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

#: $1: the user's name. $2: the number. $3: the password, as crypt(3) makes it. $4: the directory of
#: the control group.
_SEAT: Final = """
set -eu
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 desk /sys/fs/cgroup
mkdir -p "$4"
cd /run/systemd
mkdir -p sessions users seats machines
cat > users/$2 <<END
NAME=$1
STATE=active
RUNTIME=/run/home/$1
DISPLAY=c1
SESSIONS=c1
SEATS=seat0
ACTIVE_SESSIONS=c1
ONLINE_SESSIONS=c1
ACTIVE_SEATS=seat0
ONLINE_SEATS=seat0
END
cat > sessions/c1 <<END
UID=$2
USER=$1
ACTIVE=1
STATE=active
REMOTE=0
TYPE=x11
CLASS=user
SEAT=seat0
END
cat > seats/seat0 <<END
IS_SEAT0=1
CAN_GRAPHICAL=1
ACTIVE=c1
ACTIVE_UID=$2
SESSIONS=c1
UIDS=$2
END
grep -q ^sudo: /etc/group || echo 'sudo:x:27:' >> /etc/group
sed -i "s/^sudo:.*/&,$1/; s/:,/:/" /etc/group
sed -i "/^$1:/d" /etc/shadow
echo "$1:$3:20000:0:99999:7:::" >> /etc/shadow
"""
#: $@: the control groups, the innermost first. Whatever is still in them ends.
_LEAVE: Final = """
echo 1 > "$1/cgroup.kill"
for turn in $(seq 50); do
  for group in "$@"; do rmdir "$group" 2>/dev/null || :; done
  [ -e "$1" ] || break
  sleep 0.1
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
        #: Who sits here, and the control group of that session, in a slice that no other test has.
        self._seated: tuple[str, Path] | None = None

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

    def seat(self, user: str, password: str) -> None:
        """Let a user sit at this desk, as an administrator who is asked for this password."""
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"],
            input=password, capture_output=True, text=True, timeout=20, check=True,
        ).stdout.strip()  # fmt: skip
        group = Path("/sys/fs/cgroup", f"qvpn{self.network.name.replace('-', '')}.slice")
        group = group / f"user-{USERS[user]}.slice" / "session-c1.scope"
        self._seated = user, group
        self.run("sh", "-c", _SEAT, "sh", user, str(USERS[user]), hashed, str(group))
        self.allow()  # and polkit begins to look who sits where

    def close(self) -> None:
        """End what was started here, and what whoever sat here left running."""
        if self._seated is not None:
            _, group = self._seated
            self._seated = None
            self.run("sh", "-c", _LEAVE, "sh", str(group), *map(str, group.parents[:2]))
        super().close()

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
        joining: list[str] = []
        if self._seated is not None and self._seated[0] == user:
            script = f'echo 0 > {self._seated[1]}/cgroup.procs && exec "$@"'
            joining = ["sh", "-c", script, "sh"]
        return self.command(
            [
                *joining, "setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups",
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
