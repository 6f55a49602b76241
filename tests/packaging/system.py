"""A whole Debian in a namespace: its own files, processes and network, with systemd as process 1.

A :class:`System` is an overlay on a root that debootstrap made, with what a package depends on as a
layer between, so that each starts fresh. A test's network leads nowhere real. Everything in it ends
with its first process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.world.namespaces import Namespace

PROJECT: Final = Path(__file__).resolve().parents[2]
ROOTS: Final = PROJECT / "build/roots"
#: Releases of Ubuntu, which a Debian's debootstrap does not know; tried on demand only.
UBUNTU: Final = ("noble",)
UBUNTU_ARCHIVE: Final = "http://archive.ubuntu.com/ubuntu"
UBUNTU_KEYS: Final = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
#: Seconds for a boot, or for dpkg, on a busy machine.
PATIENCE: Final = 180.0

#: $1: what a package depends on. A test's disk may be lost with its power.
_SATISFY: Final = """
echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/unsafe-io
apt-get update -q
apt-get satisfy -q -y --no-install-recommends "$1"
rm -rf /var/lib/apt/lists/* /var/cache/apt/*
"""
#: $1: an empty directory. $2: the roots below, joined by colons. $3: packages. $4…: what runs.
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
# As udev makes it, whatever made the machine's own.
mknod -m 666 "$root/dev/net/tun" c 10 200
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


def prepare(suite: str, *, slim: bool = False) -> str | None:
    """Make the root of a release, once for this checkout; why not, if not.

    A `slim` one has no systemd: it is what images of containers begin with.
    """
    name = f"{suite}-slim" if slim else suite
    root = ROOTS / name
    with _alone(name):
        if root.is_dir():
            return None
        new = ROOTS / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        include = [] if slim else ["--include=systemd,systemd-sysv,dbus"]
        source: list[str] = []
        if suite in UBUNTU:
            if not UBUNTU_KEYS.exists():
                return f"Ubuntu's archive is not trusted here: {UBUNTU_KEYS} is missing"
            include += ["--components=main,universe", f"--keyring={UBUNTU_KEYS}"]
            source = [UBUNTU_ARCHIVE, "/usr/share/debootstrap/scripts/jammy"]
        log = ROOTS / f"{name}.log"
        with log.open("w") as output:
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", *include, suite, str(new), *source],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=600,
            )  # fmt: skip
        if done.returncode:
            return f"debootstrap of {suite} failed: see {log}"
        shutil.copyfile("/etc/resolv.conf", new / "etc/resolv.conf")
        new.rename(root)
    return None


def declared(package: Path) -> str:
    """What a package says that it depends on."""
    return subprocess.run(
        ["dpkg-deb", "--field", str(package), "Depends"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()


def layer(suite: str, needs: str) -> Path:
    """What `needs`, in the words of a package, put upon a root; made once.

    A test then installs the package without a network, which succeeds only if nothing is missing.
    """
    name = hashlib.sha256(needs.encode()).hexdigest()[:12]
    made = ROOTS / f"{suite}+{name}"
    with _alone(f"{suite}+{name}"):
        if made.is_dir():
            return made
        work = ROOTS / f"{suite}+{name}.new"
        shutil.rmtree(work, ignore_errors=True)
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _SETUP, "sh"]
        words += [str(work), str(ROOTS / suite), str(ROOTS)]
        words += ["sh", "-euc", _SATISFY, "sh", needs]
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr + done.stdout
        (work / "upper").rename(made)
        shutil.rmtree(work, ignore_errors=True)
    return made


class System:
    """See the module. `needs` is installed already; `packages` is seen as /packages inside."""

    def __init__(
        self,
        suite: str,
        network: Namespace,
        directory: Path,
        *,
        needs: str,
        packages: Path,
        name: str,
    ) -> None:
        self.network = network
        self.directory = directory
        below = f"{layer(suite, needs)}:{ROOTS / suite}"
        self.name = name
        self._words = [str(directory), below, str(packages)]
        self._unshare: subprocess.Popen[Any] | None = None
        self._first = 0

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        self.power_on()
        return self

    def power_on(self) -> None:
        """Boot from the disk as it is."""
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
            assert time.monotonic() < end, f"{self.name} does not boot"
            time.sleep(0.1)

    def power_off(self) -> None:
        """As a power failure does it: nothing gets to say anything. The disk stays."""
        assert self._unshare is not None
        self._unshare.kill()  # and with it all that is inside
        self._unshare.wait(PATIENCE)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.power_off()
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

    def command(self, *argv: str) -> list[str]:
        """The command line that runs `argv` inside, as root with root's usual environment."""
        return [
            *("nsenter", f"--target={self._first}", "--all", "--root", "--wdns=/"),
            *("env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            *("HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", *argv),
        ]

    def user_command(self, user: str, *argv: str, **variables: str) -> list[str]:
        """The same as an ordinary user, with an own environment."""
        settings = [f"{name}={value}" for name, value in variables.items()]
        home = f"/home/{user}"
        return self.command(
            *("runuser", "-u", user, "--", "env", "-i", f"--chdir={home}", f"HOME={home}"),
            *(f"USER={user}", f"XDG_RUNTIME_DIR={home}/run"),
            f"PATH={home}/.local/bin:/usr/local/bin:/usr/bin:/bin",
            *("LC_ALL=C.UTF-8", *settings, *argv),
        )

    def run(
        self, *argv: str, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as root."""
        return self.execute(self.command(*argv), check, timeout)

    def run_as(self, user: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as an ordinary user."""
        return self.execute(self.user_command(user, *argv), check, PATIENCE)

    def execute(
        self, argv: list[str], check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run what `command` or `user_command` made."""
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr}{done.stdout}"
        return done

    def add_user(self, user: str) -> None:
        """An ordinary user, and the directory that a log-in makes for its session."""
        self.sh(f"useradd --create-home {user} && install -d -m 700 -o {user} /home/{user}/run")

    def reach_display(self, number: int) -> None:
        """Let programs inside reach an X server of the host's, by its usual name."""
        socket = f"/tmp/.X11-unix/X{number}"
        self.sh(f"mkdir -p -m 1777 /tmp/.X11-unix && touch {socket}")
        # Into its mounts, but not into its root: from there both files have a name.
        inside = f"{self.directory}/root{socket}"
        words = ["nsenter", f"--mount=/proc/{self._first}/ns/mnt", "mount", "--bind"]
        subprocess.run([*words, socket, inside], check=True, timeout=PATIENCE)

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
