"""A machine with files of its own: real resolvers and their services, without touching the host.

A :class:`Machine` is a network namespace seen through a private mount namespace: a copy of /etc, an
empty /run and /var/lib, and unpacked Debian packages over /usr. What runs in it, this process's own
functions included, sees and changes nothing of the host's. Knows nothing about qvpn.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from tests.world.namespaces import Namespace, WorldError

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that something may take to start on a busy machine.
PATIENCE: Final = 20.0
_CLONE_FS: Final = 0x200
_CLONE_NEWNS: Final = 0x20000

_libc = ctypes.CDLL(None, use_errno=True)

#: $1: an empty directory. $2: unpacked packages, or nothing. $3: the namespace's own resolv.conf.
_SETUP: Final = """
set -eu
mount --make-rprivate /
mount -t tmpfs machine "$1"
mkdir "$1/etc"  # without what other tests make and remove beside us
find /etc -mindepth 1 -maxdepth 1 ! -name netns -exec cp -a -t "$1/etc" {} +
if [ -n "$2" ]; then
  cp -a "$2/etc/." "$1/etc/"
  mount -t overlay machine -o "lowerdir=$2/usr:/usr" /usr
fi
rm -f "$1/etc/resolv.conf"
if [ -e "$3" ]; then cat "$3"; fi > "$1/etc/resolv.conf"
sed -i '/^hosts:/d' "$1/etc/nsswitch.conf" 2>/dev/null || true
echo 'hosts: files dns' >> "$1/etc/nsswitch.conf"
grep -q ^systemd-resolve: "$1/etc/passwd" || {
  echo 'systemd-resolve:x:64990:64990::/:/usr/sbin/nologin' >> "$1/etc/passwd"
  echo 'systemd-resolve:x:64990:' >> "$1/etc/group"
}
mount --bind "$1/etc" /etc
mount -t tmpfs -o mode=755 machine /run
mount -t tmpfs machine /var/lib
mount -o remount,bind,ro /sys
mkdir -p /run/dbus /run/lock /run/systemd /var/lib/dbus
echo ready
exec sleep infinity
"""

_BUS: Final = """
<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""


def unpack(directory: Path, *packages: str) -> str | None:
    """Unpack Debian packages below `directory`, without installing them; why not, if not."""
    tools = ("apt-get", "dpkg", "dbus-daemon")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        return f"it needs Debian packages and a bus, and here is no {', no '.join(missing)}"
    for part in ("etc", "usr"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    with Scratch(directory / "download") as download:
        try:
            done = subprocess.run(
                ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *packages],
                cwd=download, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"{', '.join(packages)} cannot be downloaded within a minute"
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [""])[-1]
            return f"{', '.join(packages)} cannot be downloaded ({said}): apt-get update?"
        for file in sorted(download.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(file), str(download / "tree")], check=True)
        tree = download / "tree"
        for part in ("bin", "sbin", "lib"):  # Debian 12's packages know both layouts
            if (tree / part).is_dir():
                shutil.copytree(tree / part, tree / "usr" / part, dirs_exist_ok=True, symlinks=True)
        for part in ("etc", "usr"):
            if (tree / part).is_dir():
                shutil.copytree(tree / part, directory / part, dirs_exist_ok=True, symlinks=True)
    return None


class Scratch:
    """A directory for the length of a block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        self._path.mkdir(parents=True)
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


class Machine:
    """See the module. Its logs are below `directory`; `packages` is what `unpack` filled."""

    def __init__(self, network: Namespace, directory: Path, packages: Path | None = None) -> None:
        self.network = network
        self.logs = directory
        self._scratch = directory / "machine"
        self._packages = packages
        self._processes: list[subprocess.Popen[Any]] = []
        self._holder: subprocess.Popen[Any] | None = None
        self._mounts = -1

    def __enter__(self) -> Self:
        self._scratch.mkdir()
        script = ["sh", "-c", _SETUP, "sh", str(self._scratch), str(self._packages or "")]
        self._holder = self.network.popen(
            ["unshare", "--mount", *script, str(self.network.resolv_conf)], stdout=subprocess.PIPE
        )
        try:
            _await(self._holder, b"ready")
            self._mounts = os.open(f"/proc/{self._holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what was started here, latest first."""
        for process in reversed(self._processes):
            self.stop(process)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            if self._holder.stdout is not None:
                self._holder.stdout.close()
        if self._mounts >= 0:
            os.close(self._mounts)
            self._mounts = -1

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function of this process inside, on a thread of its own."""

        def inside() -> T:
            if _libc.unshare(_CLONE_FS) or _libc.setns(self._mounts, _CLONE_NEWNS):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            return function(*args, **kwargs)

        return self.network.call(inside)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside."""
        assert self._holder is not None
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--net", *argv]

    def run(
        self, *argv: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside and return its output."""
        options = {"capture_output": True, "text": True, "timeout": PATIENCE} | options
        done = subprocess.run(self.command(argv), **options)
        if check and done.returncode:
            raise WorldError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done

    def sh(self, script: str) -> str:
        """Run a shell script inside; its output."""
        return self.run("sh", "-euc", script).stdout

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside; it ends with the machine."""
        process = subprocess.Popen(self.command(argv), process_group=0, **options)
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[Any], number: int = 15) -> None:
        """End a program that `popen` started."""
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self._processes:
            self._processes.remove(process)

    # -- services

    def start_bus(self) -> subprocess.Popen[Any]:
        """A system bus of its own, on which everybody may do everything."""
        self.run("sh", "-c", "cat > /etc/test-bus.conf", input=_BUS)
        bus = self.popen(
            "dbus-daemon", "--config-file=/etc/test-bus.conf", "--nofork", "--print-address",
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _await(bus, b"unix:")
        return bus

    def start_resolved(self) -> subprocess.Popen[Any]:
        """systemd-resolved, listening at 127.0.0.53; needs the bus and its package."""
        return self._start("org.freedesktop.resolve1", "/usr/lib/systemd/systemd-resolved")

    def start_networkmanager(self) -> subprocess.Popen[Any]:
        """NetworkManager as /etc/NetworkManager configures it; needs the bus and its packages."""
        return self._start("org.freedesktop.NetworkManager", "NetworkManager", "--no-daemon")

    def _start(self, name: str, *argv: str) -> subprocess.Popen[Any]:
        """Start a service and wait until it is on the bus."""
        with open(self.logs / f"{name}.log", "ab") as log:
            process = self.popen(*argv, stdout=log, stderr=log)
        query = ["dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.DBus"]
        query += ["/", "org.freedesktop.DBus.NameHasOwner", f"string:{name}"]
        until(
            lambda: process.poll() is not None or "true" in self.run(*query, check=False).stdout,
            f"{name} on the bus",
        )
        if process.poll() is not None:
            raise WorldError(f"{name} ended with status {process.returncode}")
        return process


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll until `condition` is true; AssertionError when it never is."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"not within {patience:.0f} s: {what}"
        time.sleep(0.02)


def _await(process: subprocess.Popen[Any], word: bytes) -> None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    line = process.stdout.readline() if ready else b""
    if word not in line:
        raise WorldError(f"{process.args!r} did not start: {line!r}")
