"""A whole Debian in a namespace: its own files, processes and network, with systemd as process 1.

A :class:`System` is an overlay on a root that debootstrap made, so that each starts fresh. What a
package needs is downloaded into the root beforehand, for a test's network leads nowhere real.
Everything in it ends with its first process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.world.namespaces import Namespace

PROJECT: Final = Path(__file__).resolve().parents[2]
ROOTS: Final = PROJECT / "build/roots"
DIST: Final = PROJECT / "dist"
#: Seconds for a boot, or for dpkg, on a busy machine.
PATIENCE: Final = 90.0

#: $1: an empty directory. $2: the root below. $3: packages. $4…: what runs.
_SETUP: Final = """
set -eu
directory=$1 base=$2 packages=$3
shift 3
mount --make-rprivate /
mkdir -p "$directory/upper" "$directory/work" "$directory/root"
root=$directory/root
options=lowerdir=$base,upperdir=$directory/upper,workdir=$directory/work
mount -t overlay system -o "$options" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup" 2>/dev/null || :
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/dev/net" "$root/dev/shm" "$root/dev/pts" "$root/packages"
touch "$root/dev/net/tun"
mount --bind /dev/net/tun "$root/dev/net/tun"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx"
mount --bind "$packages" "$root/packages"
export container=lxc LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$root" "$@"
"""


def unavailable(suite: str) -> str | None:
    """Why there can be no such system here, in one line, or None."""
    if os.geteuid() != 0:
        return "a system in a namespace needs root"
    if shutil.which("debootstrap") is None:
        return "missing debootstrap: install it"
    return prepare(suite)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One test process at a time."""
    ROOTS.mkdir(parents=True, exist_ok=True)
    with (ROOTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare(suite: str) -> str | None:
    """Make the root of a Debian release, once for this checkout; why not, if not."""
    root = ROOTS / suite
    with _alone(suite):
        if root.is_dir():
            return None
        new = ROOTS / f"{suite}.new"
        shutil.rmtree(new, ignore_errors=True)
        include = "--include=systemd,systemd-sysv,dbus"
        log = ROOTS / f"{suite}.log"
        with log.open("w") as output:
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", include, suite, str(new)],
                stdout=output, stderr=output, timeout=600,
            )  # fmt: skip
        if done.returncode:
            return f"debootstrap of {suite} failed: see {log}"
        new.rename(root)
    return None


def download(suite: str, packages: Sequence[Path]) -> None:
    """Put what `packages` need beside the root's own packages, so that they install offline."""
    root = ROOTS / suite
    places = ("var/cache/apt/archives", "var/lib/apt/lists")
    names = [f"/packages/{path.name}" for path in packages]
    script = (
        "apt-get update -q && apt-get install -q -y --no-install-recommends --download-only "
        + " ".join(names)
    )
    with _alone(suite):
        work = ROOTS / f"{suite}.download"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
        for place in places:
            shutil.rmtree(root / place)
            (root / place / "partial").mkdir(parents=True)
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            _SETUP,
            "sh",
        ]
        words = [str(work), str(root), str(packages[0].parent), "sh", "-c", script]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr + done.stdout
        for place in places:
            upper = work / "upper" / place
            for path in filter(Path.is_file, upper.iterdir()):  # not what the overlay marks as gone
                shutil.copy(path, root / place)
        shutil.rmtree(work, ignore_errors=True)


class System:
    """See the module. `packages` is seen as /packages inside."""

    def __init__(self, suite: str, network: Namespace, directory: Path, packages: Path) -> None:
        self.network = network
        self.directory = directory
        self._words = [str(directory), str(ROOTS / suite), str(packages)]
        self._unshare: subprocess.Popen[Any] | None = None
        self._first = 0

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        self._unshare = subprocess.Popen(
            [
                *("nsenter", f"--net={self.network.path}", "unshare", "--mount", "--pid", "--fork"),
                *("--kill-child", "--cgroup", "--ipc", "--uts"),
                *("sh", "-c", _SETUP, "sh", *self._words, "/lib/systemd/systemd"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + PATIENCE
        while not self._booted():
            assert time.monotonic() < end, "the system does not boot"
            time.sleep(0.1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._unshare is not None
        self._unshare.kill()  # and with it all that is inside
        self._unshare.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _booted(self) -> bool:
        assert self._unshare is not None
        assert self._unshare.poll() is None, "the system's first process ended"
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        if not children:
            return False
        self._first = int(children.split()[0])
        if Path(f"/proc/{self._first}/comm").read_text() != "systemd\n":
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def run(
        self, *argv: str, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as root with root's usual environment."""
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
        }  # fmt: skip
        done = subprocess.run(
            ["nsenter", f"--target={self._first}", "--all", "--root", "--wdns=/", *argv],
            env=environment, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr}{done.stdout}"
        return done

    def sh(self, script: str) -> str:
        """Run a shell script inside; its output."""
        return self.run("sh", "-euc", script).stdout

    def install(self, *packages: Path) -> str:
        """Install packages as a person would, from the files; what that said."""
        names = [f"/packages/{path.name}" for path in packages]
        options = ("-y", "-q", "--no-install-recommends")
        return self.run("apt-get", "install", *options, *names).stdout

    def files(self) -> dict[str, str]:
        """What the disk holds, file by file, without what the system itself writes as it runs."""
        script = (
            "find / -xdev \\( -path /packages -o -path /proc -o -path /var/cache -o -path /var/log "
            "-o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/systemd "
            "-o -path /var/lib/private -o -path /root \\) -prune -o "
            "-printf '%p\\t%M %U:%G %l\\n'"
        )
        lines = self.run("sh", "-c", script).stdout.splitlines()
        return dict(line.split("\t", 1) for line in lines)
